"""A step as CUDA graphs: launching hundreds of small kernels one by one would leave a GPU waiting for the host.

A drafter that works on the device alone (`needs.on_device`) has its whole step in one graph. Any other proposes and
observes as it likes, and the rest of the step is a graph: its tree is copied into buffers of a bucket's size. Graphs
are kept by what the host decides about a step (bucket, kinds of sampling settings); all else is read on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from specdec.buckets import bucket, buckets, warm
from specdec.cache import Paging
from specdec.chunks import Chunk
from specdec.core import AcceptanceRule, Drafter, TargetOutput, Verdict
from specdec.decode import decode
from specdec.request import Request
from specdec.sampling import SamplingParams
from specdec.step import Lap, Step, on, unheard
from specdec.target import Target
from specdec.tree.riders import Riders
from specdec.tree.token_tree import TokenTree

MOST_GRAPHS = 64  # kept; the one that was used longest ago is dropped


class Graph:
    """What a function launched, recorded without being run.

    Args:
        pool: of memory, shared by graphs whose results are used up before another one is replayed.

    Raises:
        ValueError: the function does what a graph cannot hold.
    """

    def __init__(self, function: Callable[[], Any], pool: Any = None):
        self._graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self._graph, pool=pool):
                self._result = function()
        except RuntimeError as error:
            raise ValueError(
                f"a step could not be captured in a CUDA graph ({' '.join(str(error).split())[:200]}); the model may "
                "read tensors to the host in its forward pass: use compile=False"
            ) from error

    def replay(self) -> Any:
        """Launch it; the result's tensors are the same ones each time, with new contents."""
        self._graph.replay()
        return self._result


class Graphs:
    """Functions of fixed buffers, by key. A key's first call runs as it is, which warms up what it launches; its second
    is recorded by `make`, and that and all later ones are replays."""

    def __init__(self, make: Callable[[Callable[[], Any]], Any] | None = None):
        self._make = make or partial(Graph, pool=torch.cuda.graph_pool_handle())
        self._met: set[Hashable] = set()
        self._graphs: dict[Hashable, Any] = {}

    def __call__(self, key: Hashable, function: Callable[[], Any]) -> Any:
        if key not in self._met:
            self._met.add(key)
            return function()
        graph = self._graphs.pop(key, None)
        if graph is None:
            if len(self._graphs) == MOST_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            graph = self._make(function)
        self._graphs[key] = graph  # the latest last
        return graph.replay()


class CapturedStep(Step):
    """See the module; used like `Step`. The phases within a graph cannot be told apart: all its time is `verify`.

    Args:
        graphs: where they are kept; None makes CUDA graphs.
    """

    def __init__(
        self,
        target: Target,
        drafter: Drafter,
        rule: AcceptanceRule,
        capacity: int,
        max_length: int,
        graphs: Graphs | None = None,
        paging: Paging | None = None,
    ):
        super().__init__(target, drafter, rule, capacity, max_length, paging)
        self.graphs = graphs or Graphs()
        self._weights, self._cache = _addresses(target.model, drafter), target.cache
        # (nodes, V of draft_probs or 0, riders, replacement) -> buffers
        self._trees: dict[tuple[int, int, int, bool], TokenTree] = {}

    def __call__(self, slots: Sequence[int], lap: Lap, chunks: Sequence[Chunk] = ()) -> Tensor:
        """See `Step`."""
        if self.sampler.has_processors or chunks:  # they are Python; chunks have a length of their own at every step
            return super().__call__(slots, lap, chunks)
        if self.drafter.needs.on_device:
            plain = super().__call__
            record: Tensor = self.graphs(self.sampler.kinds, lambda: plain(slots, unheard))
            lap("verify")
            return record
        tree = self.propose(slots)
        held = self._hold(tree)
        lap("draft")
        verdict, output, record = self._decide_held(held)
        lap("verify")
        self.drafter.observe(self.state, replace(held).no_deeper_than(tree.most_depth), verdict, output)
        lap("draft")
        return record

    @property
    def stale(self) -> bool:
        """Whether weights, or the KV, lie elsewhere than when graphs were made; written in place they may be."""
        return self._weights != _addresses(self.target.model, self.drafter) or self._cache is not self.target.cache

    def _hold(self, tree: TokenTree) -> TokenTree:
        """The tree in buffers of its bucket's size, padded with dead nodes."""
        nodes = bucket(tree.max_nodes, self.max_nodes)
        probs, riders = tree.draft_probs, tree.riders
        width, count = 0 if probs is None else probs.shape[-1], 0 if riders is None else riders.count
        key = (nodes, width, count, tree.replacement)
        held = self._trees.get(key)
        if held is None:
            shape, device = (self.capacity, nodes), self.roots.device
            held = self._trees[key] = TokenTree(
                torch.zeros(shape, dtype=torch.int64, device=device),
                torch.full(shape, -1, dtype=torch.int32, device=device),
                torch.zeros(self.capacity, dtype=torch.int32, device=device),
                None if probs is None else probs.new_zeros(*shape, width),
                None if riders is None else Riders(riders.tokens.clone(), riders.parents.clone()),
                tree.replacement,
            )
        live = tree.max_nodes
        held.tokens[:, :live] = tree.tokens
        held.parents.fill_(-1)
        held.parents[:, :live] = tree.parents
        held.sizes.copy_(tree.sizes)
        if probs is not None and held.draft_probs is not None:
            held.draft_probs[:, :live] = probs
        if riders is not None and held.riders is not None:
            held.riders.tokens.copy_(riders.tokens)
            held.riders.parents.copy_(riders.parents)
        return held

    def _decide_held(self, held: TokenTree) -> tuple[Verdict, TargetOutput, Tensor]:
        """See `Step.decide`. A copy of the tree's fields has none of the depths and words that an earlier one had."""
        riders = 0 if held.riders is None else held.riders.count
        key = (held.max_nodes, held.draft_probs is not None, riders, held.replacement, self.sampler.kinds)
        decided: tuple[Verdict, TargetOutput, Tensor] = self.graphs(
            key, lambda: self.decide(replace(held), [], unheard)
        )
        return decided

    @torch.inference_mode()
    def rehearse(self, nodes: int) -> None:
        """A step with chains of `nodes` zeros; forgets the texts of the slots."""
        self._decide_held(self._hold(TokenTree.chain(self.roots.new_zeros(self.capacity, nodes))))
        self.target.lengths.zero_()


@torch.inference_mode()
def rehearse(step: Step, sampling: SamplingParams) -> None:
    """Compile the kernels that requests with such settings will need, and capture their graphs if `step` does."""
    request = Request([0], min(2 * step.max_nodes + 1, step.max_length - 1), sampling)
    what = f"{type(step.drafter).__name__} for {step.capacity} slot{'s' * (step.capacity > 1)}"
    with on(step.roots.device):
        warm(lambda _: list(decode(step, [request] * step.capacity)), [step.max_nodes], what)
        step.reset()
        if isinstance(step, CapturedStep) and not step.drafter.needs.on_device:
            for slot in range(step.capacity):
                step.sampler.start(slot, sampling, [0])
            warm(lambda nodes: [step.rehearse(nodes) for _ in range(2)], buckets(step.max_nodes), what)
            step.reset()


def _addresses(*parts: object) -> tuple[int, ...]:
    """Where the weights of models lie, and of the models within drafters."""
    found: list[int] = []
    for part in parts:
        if isinstance(part, nn.Module):
            found += [x.data_ptr() for x in (*part.parameters(), *part.buffers())]
        elif isinstance(part, list | tuple):
            found += _addresses(*part)
        elif hasattr(part, "needs") and hasattr(part, "__dict__"):
            found += _addresses(*vars(part).values())
    return tuple(found)
