"""Stand-ins: drafters that know the answer or do not, and a loop that drives a drafter without a target."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specdec.core import Drafter, DraftNeeds, TargetOutput, Verdict
from specdec.drafters import datastore
from specdec.kernels.ancestor_words import ancestor_words
from specdec.sampling import DraftNoise, Sampler, SamplingParams
from specdec.target import Target, attach
from specdec.tree.token_tree import TokenTree, num_words

CPU = torch.device("cpu")


# --- trees


def climb(parents: Sequence[int], node: int) -> list[int]:
    """The node and its ancestors, the node first."""
    path = []
    while node >= 0:
        path.append(node)
        node = parents[node]
    return path


def check_shape(tree: TokenTree) -> None:
    """Dtypes, order, padding (0, or -1 for parents), and depths and words as the kernel makes them."""
    assert (tree.tokens.dtype, tree.parents.dtype, tree.sizes.dtype) == (torch.int64, torch.int32, torch.int32)
    assert (tree.depths.dtype, tree.words.dtype) == (torch.int32, torch.int64)
    assert tree.words.shape == (tree.batch_size, tree.max_nodes, num_words(tree.max_nodes))
    node = torch.arange(tree.max_nodes)
    padding = node >= tree.sizes[:, None]
    assert ((tree.parents < node) & (tree.parents >= 0) | padding)[:, 1:].all()
    assert (tree.parents[:, 0] == -1).all()
    assert (tree.tokens[padding] == 0).all()
    assert (tree.parents[padding] == -1).all()
    words, depths = ancestor_words(tree.parents.contiguous(), tree.sizes)
    assert torch.equal(tree.words, words)
    assert torch.equal(tree.depths, depths)
    if tree.riders is not None:
        assert (tree.riders.tokens.dtype, tree.riders.parents.dtype) == (torch.int64, torch.int64)
        assert tree.riders.tokens.shape == (tree.batch_size, tree.riders.count)
        assert tree.riders.parents.shape == (tree.riders.count,)
        check_shape(tree.rows)


def naive_walk(tree: TokenTree, sequence: int, targets: Sequence[int]) -> tuple[list[int], int]:
    """Node by node from the root to the first child that carries the node's target: the path, and the last target."""
    size = int(tree.sizes[sequence])
    tokens, parents = tree.tokens[sequence].tolist(), tree.parents[sequence].tolist()
    path = [0] if size else []
    while path:
        child = next((j for j in range(size) if parents[j] == path[-1] and tokens[j] == targets[path[-1]]), None)
        if child is None:
            return path, targets[path[-1]]
        path.append(child)
    return path, -1


# --- drafters


@dataclass
class ScriptState:
    """The known continuation of every slot, and how much of it is committed."""

    texts: dict[int, list[int]] = field(default_factory=dict)
    committed: dict[int, int] = field(default_factory=dict)


class Scripted:
    """Knows what the target will write, and proposes it in random trees as often as it is told to.

    Args:
        texts: prompt -> its continuation.
        hit: how often a node below the true path carries the true token; 0 never matches, 1 always.
        max_nodes: most nodes of a tree.
        chains: propose chains of `max_nodes` nodes instead of random trees of random sizes.
        vocab: tokens to be wrong with.
    """

    def __init__(
        self,
        texts: Mapping[tuple[int, ...], list[int]],
        hit: float,
        max_nodes: int = 6,
        chains: bool = False,
        vocab: int = 80,
        seed: int = 0,
    ):
        self.texts, self.hit, self.chains, self.vocab = texts, hit, chains, vocab
        self.needs = DraftNeeds(max_nodes=max_nodes)
        self._random = random.Random(seed)

    def open(self, capacity: int, max_length: int, device: torch.device) -> ScriptState:
        return ScriptState()

    def start(self, state: ScriptState, slots: list[int], prompts: list[list[int]], prefill: TargetOutput) -> None:
        for slot, prompt in zip(slots, prompts, strict=True):
            state.texts[slot], state.committed[slot] = self.texts[tuple(prompt)], 0

    def propose(self, state: ScriptState, roots: Tensor, noise: DraftNoise) -> TokenTree:
        trees: list[tuple[list[int], list[int]]] = []
        for slot, root in enumerate(roots.tolist()):
            if root < 0:
                trees.append(([], []))
                continue
            truth = state.texts[slot][state.committed[slot] :]
            assert not truth or truth[0] == root, "the root is the next token of the text"
            trees.append(self._tree(root, truth[1:]))
        return TokenTree.from_lists(trees)

    def _tree(self, root: int, truth: list[int]) -> tuple[list[int], list[int]]:
        size = self.needs.max_nodes if self.chains else self._random.randint(1, self.needs.max_nodes)
        tokens, parents, right = [root], [-1], {0: 0}  # nodes on the true path -> their depth
        for j in range(1, size):
            parent = j - 1 if self.chains else self._random.randrange(j)
            depth = right.get(parent, len(truth))
            known = depth < len(truth)
            if known and self._random.random() < self.hit:
                token = truth[depth]
            elif known:
                token = (truth[depth] + self._random.randrange(1, self.vocab)) % self.vocab
            else:
                token = self._random.randrange(self.vocab)
            if known and token == truth[depth]:
                right[j] = depth + 1
            tokens.append(token)
            parents.append(parent)
        return tokens, parents

    def observe(self, state: ScriptState, tree: TokenTree, verdict: Verdict, output: TargetOutput) -> None:
        for slot, count in enumerate(verdict.num_accepted.tolist()):
            if count:
                state.committed[slot] += count


# --- a loop without a target


class Harness:
    """Drives a drafter as the loop does, with a made-up target whose decisions depend on a slot's text alone.

    A drafter that works on its target's KV gets a target of its own for that, which reads the texts.

    Args:
        drafter: any.
        capacity: slots.
        vocab: tokens.
        params: of every request.
        shared: whether the drafter gets the target's noise (as under `coupled`) or its own.
    """

    def __init__(
        self, drafter: Drafter, capacity: int, vocab: int, params: SamplingParams, shared: bool, max_length: int = 120
    ):
        bound = getattr(drafter, "target", None)
        self.target = Target(bound.model) if isinstance(bound, Target) else None
        if self.target is not None:
            self.target.open(capacity, max_length, drafter.needs.room)
            drafter = attach(drafter, self.target)
        self.drafter, self.vocab, self.params, self.shared = drafter, vocab, params, shared
        self.state: Any = drafter.open(capacity, max_length, CPU)
        self.sampler = Sampler(capacity, vocab, CPU)
        self.roots = torch.full((capacity,), -1)
        self.texts: dict[int, list[int]] = {}  # prompt and text, without the root
        self.acceptance = 0.7

    @torch.inference_mode()
    def enter(self, slots: Sequence[int], prompts: Sequence[list[int]]) -> None:
        """Requests enter; each one's first token is made up."""
        for slot, prompt in zip(slots, prompts, strict=True):
            self.texts[slot] = list(prompt)
            self.sampler.start(slot, self.params, self.texts[slot])
            self.roots[slot] = self._random(prompt).randrange(self.vocab)
        if self.target is not None:
            self.target.prefill(slots, prompts)
        longest = max(map(len, prompts))
        hidden = {
            layer: torch.stack([self._hidden(p, longest) for p in prompts])
            for layer in self.drafter.needs.hidden_layers
        }
        logits = torch.zeros(len(slots), 1, self.vocab)
        self.drafter.start(self.state, list(slots), [list(p) for p in prompts], TargetOutput(logits, hidden))

    @torch.inference_mode()
    def leave(self, slot: int) -> None:
        """The request in `slot` ends. The drafter is not told: it sees a root of -1."""
        self.roots[slot] = -1
        self.sampler.stop(slot)
        if self.target is not None:
            self.target.release(slot)
        del self.texts[slot]

    @torch.inference_mode()
    def step(self) -> TokenTree:
        """Propose, decide, observe."""
        positions = torch.tensor([len(self.texts.get(slot, ())) for slot in range(len(self.roots))])
        sampling = self.sampler.at(positions, self.drafter.needs.max_nodes, sorted(self.texts))
        tree = self.drafter.propose(self.state, self.roots.clone(), sampling.draft_noise(self.shared))
        path = torch.full((len(self.roots), tree.max_nodes), -1)
        following = torch.zeros_like(self.roots)
        hidden = torch.zeros(len(self.roots), tree.max_nodes, self._hidden_size)
        riders = torch.zeros(len(self.roots), tree.rows.max_nodes - tree.max_nodes, self.vocab)
        for slot, text in self.texts.items():
            nodes, following[slot] = self._decide(tree, slot)
            path[slot, : len(nodes)] = torch.tensor(nodes)
            for j in range(int(tree.sizes[slot])):
                below = [int(tree.tokens[slot, i]) for i in reversed(climb(tree.parents[slot].tolist(), j))]
                hidden[slot, j] = self._hidden(text + below, 1)[0]
            above = tree.rows.parents[slot].tolist()
            for r in range(riders.shape[1]):
                below = [int(tree.rows.tokens[slot, i]) for i in reversed(climb(above, int(tree.sizes[slot]) + r))]
                riders[slot, r, self.guess(text + below)] = 1
        verdict = Verdict(path, (path >= 0).sum(-1, dtype=torch.int32), following)
        if self.target is not None:
            self.target.verify(tree)
            self.target.commit(verdict)
        output = TargetOutput(
            torch.zeros(len(self.roots), tree.max_nodes, self.vocab),
            dict.fromkeys(self.drafter.needs.hidden_layers, hidden),
            None if tree.riders is None else riders,
        )
        self.drafter.observe(self.state, tree, verdict, output)
        for slot, text in self.texts.items():
            text += [int(tree.tokens[slot, j]) for j in path[slot].tolist() if j >= 0]
        self.sampler.commit(verdict.emitted(tree))
        self.roots = torch.where(self.roots >= 0, following, -1)
        return tree

    def _decide(self, tree: TokenTree, slot: int) -> tuple[list[int], int]:
        """A path chosen by what the text is, not by where it stands."""
        chance = self._random([*self.texts[slot], int(self.roots[slot])])
        parents = tree.parents[slot, : int(tree.sizes[slot])].tolist()
        path = [0]
        while chance.random() < self.acceptance:
            children = [j for j, parent in enumerate(parents) if parent == path[-1]]
            if not children:
                break
            path.append(chance.choice(children))
        return path, chance.randrange(self.vocab)

    def guess(self, text: Sequence[int]) -> int:
        """The most likely token after a rider."""
        return self._random(text).randrange(self.vocab)

    @staticmethod
    def _random(text: Sequence[int]) -> random.Random:
        return random.Random(hash(tuple(text)))

    @property
    def _hidden_size(self) -> int:
        return int(getattr(self.drafter, "hidden_size", 16))

    def _hidden(self, text: Sequence[int], rows: int) -> Tensor:
        """Made-up hidden states `[rows, H]`, a function of the text."""
        generator = torch.Generator().manual_seed(hash(tuple(text)) % 2**31)
        return torch.randn(rows, self._hidden_size, generator=generator)


# --- corpora


def write_datastore(
    file: Path, texts: Sequence[Sequence[int]], vocab_size: int, tokenizer: bytes = bytes(32), separator: int = 0
) -> Path:
    """A datastore whose suffixes are sorted by Python."""
    tokens = [token for text in texts for token in (*text, separator)]
    suffixes = sorted(range(len(tokens)), key=lambda at: tokens[at:])
    datastore.write(file, np.array(tokens), np.array(suffixes), vocab_size, separator, tokenizer)
    return file
