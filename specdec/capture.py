"""A step as CUDA graphs: launching hundreds of small kernels one by one would leave a GPU waiting for the host.

A drafter that works on the device alone (`needs.on_device`) has its whole step in one graph. Any other proposes and
observes as it likes, and the rest of the step is a graph: its tree is copied into buffers of a bucket's size. Graphs
are kept by what the host decides about a step (bucket, kinds of sampling settings); all else is read on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from specdec.compiled import bucket, buckets, warm
from specdec.core import AcceptanceRule, Drafter, TargetOutput, Verdict
from specdec.decode import decode
from specdec.request import Request
from specdec.sampling import SamplingParams
from specdec.step import Lap, Step
from specdec.target import Target
from specdec.tree.token_tree import TokenTree

MOST_GRAPHS = 64  # kept; the oldest is dropped


class Graph:
    """What a function launched, recorded without being run."""

    def __init__(self, function: Callable[[], Any]):
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._result = function()

    def replay(self) -> Any:
        """Launch it; the result's tensors are the same ones each time, with new contents."""
        self._graph.replay()
        return self._result


class Graphs:
    """Functions of fixed buffers, by key. A key's first call runs as it is, which warms up what it launches; its second
    is recorded by `make`, and that and all later ones are replays."""

    def __init__(self, make: Callable[[Callable[[], Any]], Any] = Graph):
        self._make = make
        self._met: set[Hashable] = set()
        self._graphs: dict[Hashable, Any] = {}

    def __call__(self, key: Hashable, function: Callable[[], Any]) -> Any:
        if key not in self._met:
            self._met.add(key)
            return function()
        if key not in self._graphs:
            if len(self._graphs) == MOST_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            self._graphs[key] = self._make(function)
        return self._graphs[key].replay()


class CapturedStep(Step):
    """See the module; used like `Step`. The phases within a graph cannot be told apart: all its time is `verify`."""

    def __init__(self, target: Target, drafter: Drafter, rule: AcceptanceRule, capacity: int, max_length: int):
        super().__init__(target, drafter, rule, capacity, max_length)
        self.graphs = Graphs()
        self._trees: dict[tuple[int, int], TokenTree] = {}  # (nodes, V of draft_probs or 0) -> buffers

    def __call__(self, slots: Sequence[int], lap: Lap) -> Tensor:
        """See `Step`."""
        if self.sampler.has_processors:  # they are Python
            return super().__call__(slots, lap)
        if self.drafter.needs.on_device:
            plain = super().__call__
            record: Tensor = self.graphs(self.sampler.kinds, lambda: plain(slots, _unheard))
            lap("verify")
            return record
        held = self._hold(self.propose(slots))
        lap("draft")
        verdict, output, record = self._decide_held(held)
        lap("verify")
        self.drafter.observe(self.state, replace(held), verdict, output)
        lap("draft")
        return record

    def _hold(self, tree: TokenTree) -> TokenTree:
        """The tree in buffers of its bucket's size, padded with dead nodes."""
        nodes = bucket(tree.max_nodes, self.max_nodes)
        probs = tree.draft_probs
        vocab_size = 0 if probs is None else probs.shape[-1]
        held = self._trees.get((nodes, vocab_size))
        if held is None:
            shape, device = (self.capacity, nodes), self.roots.device
            held = self._trees[nodes, vocab_size] = TokenTree(
                torch.zeros(shape, dtype=torch.int64, device=device),
                torch.full(shape, -1, dtype=torch.int32, device=device),
                torch.zeros(self.capacity, dtype=torch.int32, device=device),
                None if probs is None else probs.new_zeros(*shape, vocab_size),
            )
        live = tree.max_nodes
        held.tokens[:, :live] = tree.tokens
        held.parents.fill_(-1)
        held.parents[:, :live] = tree.parents
        held.sizes.copy_(tree.sizes)
        if probs is not None and held.draft_probs is not None:
            held.draft_probs[:, :live] = probs
        return held

    def _decide_held(self, held: TokenTree) -> tuple[Verdict, TargetOutput, Tensor]:
        """See `Step.decide`. A copy of the tree's fields has none of the depths and words that an earlier one had."""
        key = (held.max_nodes, held.draft_probs is not None, self.sampler.kinds)
        decided: tuple[Verdict, TargetOutput, Tensor] = self.graphs(
            key, lambda: self.decide(replace(held), [], _unheard)
        )
        return decided

    @torch.inference_mode()
    def rehearse(self, nodes: int) -> None:
        """A step with chains of `nodes` zeros; forgets the texts of the slots."""
        self._decide_held(self._hold(TokenTree.chain(self.roots.new_zeros(self.capacity, nodes))))
        self.target.lengths.zero_()


def rehearse(step: CapturedStep, sampling: SamplingParams) -> None:
    """Capture what requests with such settings will need, with a line of progress a graph on stderr."""
    what = f"{type(step.drafter).__name__} for {step.capacity} slot{'s' * (step.capacity > 1)}"
    if not step.drafter.needs.on_device:
        for slot in range(step.capacity):
            step.sampler.start(slot, sampling, [0])
        warm(lambda nodes: [step.rehearse(nodes) for _ in range(2)], buckets(step.max_nodes), what)
        step.reset()
        return
    request = Request([0], 2 * step.max_nodes + 1, sampling)  # three steps at least

    warm(lambda _: list(decode(step, [request] * step.capacity)), [step.max_nodes], what)
    step.reset()


def _unheard(phase: str) -> None:
    """Nobody can look at a clock within a graph."""
