"""`specdec bench rules`: what acceptance rules cost, over one verify pass of a 1B model on the same machine.

Trees and logits are made up: normal logits, and a draft whose logits are the target's and as much noise, so that
about six of ten drafts are taken. Trees are drawn as in the loop, for `fixed` ones with the target's own noise, several
for every batch, since a rule's work depends on what it accepts. Every result is first compared with that of the rule in
plain steps (`plain_rules`); those that differ where a choice was close enough for rounding are counted as ties. The
verify pass and all rules are timed by turns, and shares are taken within a round.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from specdec import registry
from specdec.core import AcceptanceRule, Verdict
from specdec.experiments.bench import plain_rules
from specdec.experiments.bench.clock import Call, by_turns, prepare, quantiles
from specdec.experiments.bench.results import Json, origin
from specdec.experiments.bench.stand_ins import fill
from specdec.sampling import Sampler, SamplingParams, StepSampling
from specdec.target import Target
from specdec.tree.grow import Frontier, grow
from specdec.tree.static import StaticTree, chain
from specdec.tree.token_tree import TokenTree

MOST = 0.05  # of a verify pass
TREES = 4  # of a batch, timed in rotation
CHILDREN = 3
JUDGED = {  # rule -> (shape, how its children came): what differs. Fixed children `coupled` judges for all
    "coupled": [("chain", "fixed"), ("tree", "fixed")],
    "rejection": [("chain", "drawn"), ("tree", "drawn"), ("tree", "fixed")],
    "block": [("chain", "drawn"), ("chain", "fixed")],
    "traversal": [("tree", "drawn"), ("tree", "fixed")],
    "typical": [("chain", "drawn"), ("tree", "drawn")],
    "relaxed": [("chain", "drawn"), ("tree", "drawn")],
}


@dataclass(frozen=True)
class Settings:
    """Of `specdec bench rules`.

    Attributes:
        vocab, batch: vocabularies and numbers of sequences, with commas between.
        nodes: of every tree, the root included.
        temperature, top_p: of sampling; at top_p=1 nothing is filtered.
        context: committed tokens of every sequence.
        layers, hidden, mlp, heads, kv_heads: of the model, in bfloat16, with random weights and tied embeddings.
        seconds: of timing for every vocabulary and batch.
        output: the file.
    """

    vocab: str = "32000,131072"
    batch: str = "1,8"
    nodes: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    context: int = 512
    layers: int = 16
    hidden: int = 2048
    mlp: int = 8192
    heads: int = 32
    kv_heads: int = 8
    seconds: float = 60.0
    output: str = "outputs/bench/rules.json"


class Batch(NamedTuple):
    """What a rule judges in one call.

    Attributes:
        tree, logits: of B sequences, `[B, N]` and `[B, N, V]`.
        sampler: of all, and of each alone.
        positions: `[B]`, of the roots.
    """

    tree: TokenTree
    logits: Tensor
    sampler: Sampler
    singles: Sequence[Sampler]
    positions: Tensor

    def judge(self, rule: AcceptanceRule) -> Verdict:
        """As a step of the loop does."""
        nodes = self.tree.max_nodes
        return rule(self.tree, self.logits, self.sampler.at(self.positions, nodes, range(self.tree.batch_size)))

    def alone(self, b: int) -> tuple[TokenTree, Tensor, StepSampling]:
        """Sequence `b` as a batch of its own."""
        tree, one = self.tree, slice(b, b + 1)
        probs = None if tree.draft_probs is None else tree.draft_probs[one]
        single = TokenTree(tree.tokens[one], tree.parents[one], tree.sizes[one], probs, replacement=tree.replacement)
        return single, self.logits[one], self.singles[b].at(self.positions[one], tree.max_nodes, [0])


@torch.inference_mode()
def measure_rules(settings: Settings, device: torch.device, told: Callable[[str], None] = lambda _: None) -> Json:
    """Everything, as it goes into the file.

    Args:
        told: is given the name of what begins.

    Raises:
        ValueError: `vocab` or `batch` is no list of numbers, or a rule's result is wrong.
    """
    rows: list[Json] = []
    batches = _numbers(settings, "batch")
    for vocab in _numbers(settings, "vocab"):
        told(f"a model of {vocab} tokens")
        model = _model(settings, vocab, device)
        for batch in batches:
            told(f"vocabulary {vocab}, batch {batch}")
            rows += _measure(settings, model, batch)
    return {
        "what": f"microseconds a step, p20, p50 and p80, and share of one verify pass; target: at most {MOST:.0%}",
        "device": device.type,
        "rows": rows,
        "provenance": origin(settings),
    }


def _numbers(settings: Settings, name: str) -> list[int]:
    texts = str(getattr(settings, name)).split(",")
    if not all(text.isdigit() and int(text) > 0 for text in texts):
        raise ValueError(f"{name}={getattr(settings, name)}; expected whole numbers above 0, with commas between")
    return [int(text) for text in texts]


def _model(settings: Settings, vocab: int, device: torch.device) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=settings.hidden, intermediate_size=settings.mlp,
        num_hidden_layers=settings.layers, num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads, max_position_embeddings=2 * (settings.context + settings.nodes),
        tie_word_embeddings=True, dtype=torch.bfloat16,
    )  # fmt: skip
    with torch.device(device):
        return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def _measure(settings: Settings, model: LlamaForCausalLM, batch: int) -> list[Json]:
    """The rows of a vocabulary and a batch."""
    vocab, device = model.config.vocab_size, model.device
    generator = torch.Generator(device).manual_seed(0)
    shape = (batch, settings.nodes, vocab)
    logits = torch.randn(shape, generator=generator, device=device).mul_(2)  # [B, N, V] float32
    draft_logits = torch.randn(shape, generator=generator, device=device).add_(logits)
    calls: dict[str, list[Call]] = {"verify": [_verify(model, settings, batch)]}
    checked = {}
    for kind in dict.fromkeys(kind for kinds in JUDGED.values() for kind in kinds):
        made = _batches(settings, *kind, logits, draft_logits)
        for name in (name for name, kinds in JUDGED.items() if kind in kinds):
            rule: AcceptanceRule = registry.build("acceptance", name)
            key = ", ".join((name, *kind))
            checked[key] = [check(name, rule, each) for each in made]
            calls[key] = [lambda each=each, rule=rule: each.judge(rule) for each in made]  # type: ignore[misc]
    del draft_logits
    samples = by_turns({key: prepare(each, device).turn for key, each in calls.items()}, settings.seconds)
    verify = [round(x * 1e6, 1) for x in quantiles(samples["verify"])]
    rows = []
    for key, verdicts in checked.items():
        counts, ties = zip(*verdicts, strict=True)
        shares = quantiles([a / b for a, b in zip(samples[key], samples["verify"], strict=True)])
        times = [round(x * 1e6, 1) for x in quantiles(samples[key])]
        about = {"rule": key, "vocab": vocab, "batch": batch, "accepted": round(sum(counts) / len(counts), 2)}
        about |= {"ties": sum(ties), "rounds": len(samples[key])}
        rows.append({**about, "microseconds": times, "share": [round(x, 4) for x in shares], "verify": verify})
    return rows


def _verify(model: LlamaForCausalLM, settings: Settings, batch: int) -> Call:
    target = Target(model)
    target.open(batch, settings.context + 1, settings.nodes)
    fill(target.cache)
    target.lengths.fill_(settings.context)
    tree = TokenTree.chain(torch.zeros(batch, settings.nodes, dtype=torch.int64, device=model.device))
    return lambda: target.verify(tree)


def _batches(settings: Settings, shape: str, how: str, logits: Tensor, draft_logits: Tensor) -> list[Batch]:
    """Trees of one shape, with children that were drawn, or fixed by the target's own noise."""
    batch, nodes, vocab = logits.shape
    policy = chain(nodes - 1) if shape == "chain" else StaticTree(_paths(nodes))
    ranks: list[tuple[int, ...]] = [(), *policy.paths]
    parents = sorted({ranks.index(path[:-1]) for path in policy.paths})
    params = [SamplingParams(settings.temperature, top_p=settings.top_p, seed=b) for b in range(batch)]
    sampler = Sampler(batch, vocab, logits.device)
    singles = [Sampler(1, vocab, logits.device) for _ in params]
    for b, each in enumerate(params):
        sampler.start(b, each, [0])
        singles[b].start(0, each, [0])
    roots = torch.zeros(batch, dtype=torch.int64, device=logits.device)
    made: list[Batch] = []
    for number in range(TREES):
        positions = torch.full_like(roots, settings.context + nodes * number).int()
        step = sampler.at(positions, nodes, range(batch))
        done = 0

        def expand(frontier: Frontier) -> Tensor:
            nonlocal done
            first, done = done, done + frontier.tokens.shape[1]
            return draft_logits[:, parents[1 + first : 1 + done]]

        tree = grow(policy, roots, draft_logits[:, 0], expand, step.draft_noise(how == "fixed")).tree
        if made:  # all were drawn from the same distributions
            tree = dataclasses.replace(tree, draft_probs=made[0].tree.draft_probs).with_shape(tree.depths, tree.words)
        made.append(Batch(tree, logits, sampler, singles, positions))
    return made


def _paths(nodes: int) -> list[list[int]]:
    """Every node has CHILDREN children, level by level, until there are as many nodes as there should be."""
    paths: list[list[int]] = [[]]
    for j in range(1, nodes):
        paths.append([*paths[(j - 1) // CHILDREN], (j - 1) % CHILDREN])
    return paths[1:]


def check(name: str, rule: AcceptanceRule, batch: Batch) -> tuple[float, int]:
    """Tokens accepted on average, and how many sequences' verdicts are others than in plain steps where a choice was
    so close that rounding may have made it.

    Raises:
        ValueError: for a sequence the verdict is not that of the rule in plain steps.
    """
    verdict, ties = batch.judge(rule), 0
    for b in range(batch.tree.batch_size):
        if batch.tree.sizes[b] == 0:
            continue
        nodes = plain_rules.Nodes(*batch.alone(b))
        path, token = plain(name, rule, batch.tree)(nodes)
        found = [j for j in verdict.path[b].tolist() if j >= 0]
        if (found, int(verdict.next_token[b])) == (path, token):
            continue
        if not nodes.close:
            raise ValueError(
                f"{name} accepts the nodes {found} and then writes token {int(verdict.next_token[b])}; expected "
                f"{path} and {token}, as in plain steps. Nothing was timed"
            )
        ties += 1
    return float(verdict.num_accepted.float().mean()) - 1, ties


def plain(name: str, rule: Any, tree: TokenTree) -> plain_rules.Plain:
    """The rule in plain steps."""
    if not rule.lossless:
        return plain_rules.deepest(rule._fits)
    follows = name == "coupled" or tree.draft_probs is None
    return plain_rules.follow if follows else getattr(plain_rules, name)


def show(measured: Json) -> Table:
    """For the terminal."""
    table = Table("rule", "V", "B", "accepted", "us, p50 (p20 to p80)", "of a verify pass", "", title=measured["what"])
    for row in measured["rows"]:
        low, middle, high = row["microseconds"]
        share = row["share"][1]
        judged = "reached" if share <= MOST else "missed"
        times = f"{middle:,.0f} ({low:,.0f} to {high:,.0f})"
        table.add_row(
            row["rule"], str(row["vocab"]), str(row["batch"]), f"{row['accepted']:.1f}", times, f"{share:.2%}", judged
        )
    return table
