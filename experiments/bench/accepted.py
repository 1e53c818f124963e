"""`specdec bench accepted`: how much rules accept of the very same drafts, at every place of plain texts.

Runs with the same seed draft the same in their first step only, for then the texts part. So here a step emits the
target's own next token, whatever was drafted: every place of a plain text is a root once, the drafter proposes one
tree there, and every rule judges that tree many times, with noise of its own. A mean accepted length is tokens per
step, the rule's own included; ratios are of two rules' means, with 95 % bootstrap intervals over prompts, paired.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from rich.table import Table
from torch import Tensor

from specdec import loading, registry
from specdec.core import AcceptanceRule, TreePolicy, Verdict
from specdec.engine import Engine, serve
from specdec.experiments.bench.results import Json, origin
from specdec.experiments.data import load_questions
from specdec.metrics import speedup
from specdec.request import Request
from specdec.sampling import Sampler, SamplingParams, StepSampling
from specdec.target import Target
from specdec.tree.static import StaticTree, chain
from specdec.tree.token_tree import TokenTree

BINARY = [[int(bit) for bit in f"{i:0{depth}b}"] for depth in range(1, 5) for i in range(1 << depth)]
SEEDS = 1 << 32  # of judges, apart from those of texts


@dataclass(frozen=True)
class Settings:
    """Of `specdec bench accepted`.

    Attributes:
        target, draft: models, by name or folder.
        prompts, tokens: how many texts, and new tokens of each.
        judges: how many times every rule judges a tree.
        temperature: of both models.
        device: auto, or torch's name.
        output: the file.
    """

    target: str = "tiny"
    draft: str = "tiny-draft"
    prompts: int = 100
    tokens: int = 16
    judges: int = 16
    temperature: float = 1.0
    device: str = "auto"
    output: str = "outputs/bench/accepted.json"


def drafts() -> dict[str, tuple[TreePolicy, str]]:
    """Shapes, and the rule that is compared with rejection."""
    return {
        "chain of 4": (chain(4), "block"),
        "chain of 8": (chain(8), "block"),
        "tree=static": (registry.build("tree", "static"), "traversal"),
        "binary tree of 4 levels": (StaticTree(BINARY), "traversal"),
    }


@dataclass(frozen=True, slots=True)
class Judged:
    """A rule that writes plain text, and lets others judge the drafts meanwhile. For one slot.

    Attributes:
        rules: those that judge.
        judges: a slot for every time that each of them does.
        accepted: of each, tokens of all its judgements of a tree, one number a step.
    """

    rules: Mapping[str, AcceptanceRule]
    judges: Sampler
    accepted: dict[str, list[int]] = field(default_factory=dict)

    lossless: ClassVar[bool] = True
    shared_noise: ClassVar[bool] = False

    def begin(self, text: int, temperature: float) -> None:
        """Text number `text` begins: judges get seeds that no other text's have, so that texts are independent."""
        count = len(self.judges.greedy)
        for slot in range(count):
            params = SamplingParams(temperature=temperature, seed=SEEDS + text * count + slot)
            self.judges.start(slot, params, [])

    def __call__(self, tree: TokenTree, logits: Tensor, sampling: StepSampling) -> Verdict:
        """See AcceptanceRule."""
        if tree.max_nodes > 1 and int(tree.sizes[0]):
            self._judge(tree, logits, sampling)
        token = sampling.draw(logits[:, 0], 0, tree.tokens[:, :0])
        return Verdict(torch.zeros_like(tree.tokens[:, :1]), tree.sizes.clamp_max(1), token)

    def _judge(self, tree: TokenTree, logits: Tensor, sampling: StepSampling) -> None:
        count = len(self.judges.greedy)
        assert tree.draft_probs is not None
        many = TokenTree(
            tree.tokens.expand(count, -1),
            tree.parents.expand(count, -1),
            tree.sizes.expand(count),
            tree.draft_probs.expand(count, -1, -1),
            replacement=tree.replacement,
        )
        for name, rule in self.rules.items():
            step = self.judges.at(sampling.positions.expand(count), tree.max_nodes, range(count))
            verdict = rule(many, logits.expand(count, -1, -1), step)
            self.accepted.setdefault(name, []).append(int(verdict.num_accepted.sum()))


@dataclass(slots=True)
class Counts:
    """Of one kind of draft and every prompt: (tokens, judgements), by rule."""

    by_rule: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def add(self, judged: Judged) -> None:
        """A text has ended; the next one begins."""
        for name, tokens in judged.accepted.items():
            self.by_rule.setdefault(name, []).append((sum(tokens), float(len(tokens) * len(judged.judges.greedy))))
        judged.accepted.clear()

    def row(self, drafts: str, rule: str) -> Json:
        """The entry of a result: `rule` against rejection."""
        means = {name: sum(t for t, _ in each) / sum(n for _, n in each) for name, each in self.by_rule.items()}
        ratio = speedup(self.by_rule[rule], self.by_rule["rejection"])
        steps = sum(n for _, n in self.by_rule[rule])
        return {
            "drafts": drafts, "rule": rule, "prompts": len(self.by_rule[rule]), "judgements": int(steps),
            "mean_accepted_length": {name: round(mean, 4) for name, mean in means.items()},
            "ratio": round(ratio.ratio, 4), "low": round(ratio.low, 4), "high": round(ratio.high, 4),
        }  # fmt: skip


def measure_accepted(settings: Settings, told: Callable[[int, int], None] = lambda done, total: None) -> Json:
    """Everything, as it goes into the file.

    Args:
        told: is given how many texts are done, of how many.

    Raises:
        ValueError: a model cannot be used, or there are not so many prompts.
    """
    tokenizer = loading.load_tokenizer(settings.target)
    questions = load_questions(limit=settings.prompts).items
    if len(questions) < settings.prompts:
        raise ValueError(f"prompts={settings.prompts}; there are {len(questions)}")
    target, draft = (loading.load_model(name, settings.device) for name in (settings.target, settings.draft))
    drafter = {"_target_": "specdec.drafters.draft_model.DraftModel", "model": draft}
    shapes = drafts()
    rows, done = [], 0
    for name, (policy, rule) in shapes.items():
        judges = Sampler(settings.judges, Target(target).vocab_size, target.device)
        judged = Judged({each: registry.build("acceptance", each) for each in ("rejection", rule)}, judges)
        engine, counts = Engine(target, drafter, policy, judged), Counts()
        for number, question in enumerate(questions):
            judged.begin(number, settings.temperature)
            prompt = tokenizer(question.turns[0])["input_ids"]
            room = (engine.target.max_positions or 1 << 30) - settings.tokens
            sampling = SamplingParams(temperature=settings.temperature, seed=number)
            serve(engine, [Request(prompt[-room:], settings.tokens, sampling)])
            counts.add(judged)
            done += 1
            told(done, len(shapes) * len(questions))
        rows.append(counts.row(name, rule))
    return {
        "what": "tokens a step of rules that judge the same drafts, at every place of plain texts",
        "rows": rows,
        "provenance": origin(settings),
    }


def show(measured: Json) -> Table:
    """For the terminal."""
    table = Table("drafts", "rule", "tokens a step", "rejection's", "ratio [95 %]", title=measured["what"])
    for row in measured["rows"]:
        means = row["mean_accepted_length"]
        ratio = f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        table.add_row(row["drafts"], row["rule"], f"{means[row['rule']]:.3f}", f"{means['rejection']:.3f}", ratio)
    return table
