"""The distribution of emitted text, exactly: every random choice of a step is branched on, none is drawn.

A step of a rule makes finitely many choices: which tokens the draft draws, whether a child is accepted, which token
comes last. `outcomes` runs the step once per sequence of choices and gives each result with its probability, so that
"distributed as the target alone would write it" is an equation and not a statistic.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from specdec.core import AcceptanceRule, TreePolicy
from specdec.tree.grow import Frontier, grow
from specdec.tree.token_tree import TokenTree

T = TypeVar("T")
Text = tuple[int, ...]
Model = Callable[[Text], Tensor]  # tokens below the root -> distribution of the next one [V], float64


@dataclass
class Choices:
    """The choices of one run: those of `script` first, then always the first one possible."""

    script: list[int]
    taken: list[tuple[int, list[float]]] = field(default_factory=list)
    weight: float = 1.0

    def choose(self, probabilities: Tensor) -> int:
        """An index with a positive probability; `probabilities` `[K]` sum to one."""
        options = probabilities.tolist()
        possible = [i for i, p in enumerate(options) if p > 0]
        if len(possible) == 1:
            return possible[0]
        turn = len(self.taken)
        index = self.script[turn] if turn < len(self.script) else possible[0]
        self.taken.append((index, options))
        self.weight *= options[index]
        return index

    def following(self) -> list[int] | None:
        """The script of the next run; None after the last."""
        taken = list(self.taken)
        while taken:
            index, options = taken.pop()
            later = [i for i in range(index + 1, len(options)) if options[i] > 0]
            if later:
                return [i for i, _ in taken] + [later[0]]
        return None


def outcomes(run: Callable[[Choices], T]) -> Iterator[tuple[float, T]]:
    """Every result of `run` with its probability."""
    script: list[int] | None = []
    while script is not None:
        choices = Choices(script)
        result = run(choices)
        yield choices.weight, result
        script = choices.following()


class ExactSampling:
    """Stands in for StepSampling and DraftNoise at one sequence: asks `choices` where they draw."""

    raw = False
    at_once = False
    shared = False
    reads_paths = True  # choices ask the models, and these read texts

    def __init__(self, choices: Choices):
        self._choices = choices
        self._ends: list[list[float]] = []

    def probs(self, logits: Tensor, path: Tensor) -> Tensor:
        return logits.softmax(-1)

    def draw(self, logits: Tensor, depth: int, path: Tensor) -> Tensor:
        return torch.tensor([self._choices.choose(logits[0].softmax(-1))])

    def draw_from(self, probs: Tensor, depth: int) -> Tensor:
        """The last token, which nothing depends on: a number behind the vocabulary stands for all that are possible."""
        self._ends.append((probs[0] / probs[0].sum()).tolist())
        return torch.tensor([probs.shape[-1] + len(self._ends) - 1])

    def ends(self, token: int, vocab: int) -> dict[int, float]:
        """The tokens that a last one, as it was emitted, stands for, with their probabilities."""
        if token < vocab:
            return {token: 1.0}
        return {end: p for end, p in enumerate(self._ends[token - vocab]) if p > 0}

    def accept(self, probability: Tensor, depth: int, turn: int) -> Tensor:
        chance = probability[0].clamp(0, 1)
        return torch.tensor([self._choices.choose(torch.stack([1 - chance, chance])) == 1])

    def choose(
        self, logits: Tensor, depth: int, count: int, path: Tensor, fixed: bool = False, replacement: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Children with replacement, or without, as Gumbel-top-k draws them."""
        log_probs = logits.log_softmax(-1)
        if fixed:
            values, tokens = log_probs.topk(count, dim=-1)
            return tokens, values, None
        draw = self._with_replacement if replacement else self._without_replacement
        rows = [draw(p, count) for p in log_probs[0].exp()]
        tokens = torch.tensor([rows])  # [1, F, K]
        return tokens, log_probs.gather(-1, tokens), log_probs.exp()

    def _with_replacement(self, probs: Tensor, count: int) -> list[int]:
        return [self._choices.choose(probs) for _ in range(count)]

    def _without_replacement(self, probs: Tensor, count: int) -> list[int]:
        """Impossible tokens come when no other is left."""
        left = probs.clone()
        drawn: list[int] = []
        while len(drawn) < count and float(left.sum()) > 0:
            drawn.append(self._choices.choose(left / left.sum()))
            left[drawn[-1]] = 0
        return (drawn + [t for t in range(len(probs)) if t not in drawn])[:count]


def joint(model: Model, length: int, given: Text = ()) -> dict[Text, float]:
    """Probability of every text of `length` tokens that begins with `given`, given `given`."""
    if len(given) >= length:
        return {given[:length]: 1.0}
    result: dict[Text, float] = {}
    for token, p in enumerate(model(given).tolist()):
        if p > 0:
            for text, q in joint(model, length, (*given, token)).items():
                result[text] = p * q
    return result


def node_paths(tree: TokenTree) -> list[Text]:
    """Tokens below the root to every node of the only sequence."""
    paths: list[Text] = []
    for token, parent in zip(tree.tokens[0].tolist(), tree.parents[0].tolist(), strict=True):
        paths.append((*paths[parent], token) if parent >= 0 else ())
    return paths


def logits_of(model: Model, paths: list[Text]) -> Tensor:
    """`[1, N, V]`."""
    return torch.stack([model(p) for p in paths]).log()[None]


def draft(policy: TreePolicy, drafter: Model, noise: Any) -> TokenTree:
    """A tree grown from exact draft distributions."""

    def expand(frontier: Frontier) -> Tensor:
        return logits_of(drafter, [tuple(p) for p in frontier.path[0].tolist()])

    return grow(policy, torch.tensor([0]), logits_of(drafter, [()])[:, 0], expand, noise).tree


def drafts(policy: TreePolicy, drafter: Model) -> Iterator[tuple[float, TokenTree]]:
    """Every tree that can be drafted, once, with its probability."""
    chances: dict[Text, float] = {}
    trees: dict[Text, TokenTree] = {}

    def grow_one(choices: Choices) -> TokenTree:
        return draft(policy, drafter, ExactSampling(choices))

    for weight, tree in outcomes(grow_one):
        tokens = tuple(tree.tokens[0].tolist())
        trees[tokens] = tree
        chances[tokens] = chances.get(tokens, 0.0) + weight
    for tokens, chance in chances.items():
        yield chance, trees[tokens]


def emit(rule: AcceptanceRule, tree: TokenTree, logits: Tensor, choices: Choices) -> dict[Text, float]:
    """What one step may write, but for its last token the same."""
    sampling: Any = ExactSampling(choices)
    verdict = rule(tree, logits, sampling)
    *accepted, last = verdict.emitted(tree)[0, : int(verdict.num_accepted)].tolist()
    return {(*accepted, end): p for end, p in sampling.ends(last, logits.shape[-1]).items()}


def emitted_distribution(
    rule: AcceptanceRule, policy: TreePolicy, target: Model, drafter: Model
) -> tuple[dict[Text, float], dict[Text, float]]:
    """Texts that begin with what one step emits and go on as the target does, and the target's own texts."""
    length = policy.depth + 1
    continued: dict[Text, dict[Text, float]] = {}
    result: dict[Text, float] = {}
    for chance, tree in drafts(policy, drafter):
        logits = logits_of(target, node_paths(tree))
        for weight, ends in outcomes(partial(emit, rule, tree, logits)):
            for begun, share in ends.items():
                if begun not in continued:
                    continued[begun] = joint(target, length, begun)
                for text, p in continued[begun].items():
                    result[text] = result.get(text, 0.0) + chance * weight * share * p
    return result, joint(target, length)


class Unfinished(ExactSampling):
    """The last token does not matter."""

    def draw_from(self, probs: Tensor, depth: int) -> Tensor:
        return torch.zeros(1, dtype=torch.int64)


def accepted_length(rule: AcceptanceRule, trees: Sequence[tuple[float, TokenTree]], target: Model) -> float:
    """How many drafted tokens one step accepts on average, exactly; `trees` with their probabilities, as `drafts`."""

    def accepted(tree: TokenTree, logits: Tensor, choices: Choices) -> int:
        sampling: Any = Unfinished(choices)
        return int(rule(tree, logits, sampling).num_accepted) - 1

    total = 0.0
    for chance, tree in trees:
        run = partial(accepted, tree, logits_of(target, node_paths(tree)))
        total += chance * sum(weight * length for weight, length in outcomes(run))
    return total


def largest_difference(one: dict[Text, float], other: dict[Text, float]) -> float:
    return max(abs(one.get(text, 0.0) - other.get(text, 0.0)) for text in one | other)


def random_model(vocab: int, seed: int, spread: float = 1.5, zeros: int = 0, depth: int = 4) -> Model:
    """A table of distributions, one per text below the root; `zeros` tokens of each are impossible."""
    generator = torch.Generator().manual_seed(seed)
    table: dict[Text, Tensor] = {}
    for length in range(depth):
        for text in itertools.product(range(vocab), repeat=length):
            logits = torch.randn(vocab, generator=generator, dtype=torch.float64) * spread
            logits[torch.randperm(vocab, generator=generator)[:zeros]] = -torch.inf
            table[text] = logits.softmax(-1)
    return lambda text: table[text]
