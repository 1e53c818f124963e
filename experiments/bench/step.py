"""Whole steps of the loop on a random model: how near to the time that its weights and KV take to read.

The text means nothing, so the draft is any chain and the rule accepts a set number of its nodes: what a step costs does
not depend on which. The host reads every step's record, as the loop does.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from specdec.capture import CapturedStep
from specdec.core import DraftNeeds, TargetOutput, Verdict
from specdec.decode import Flight, steps_late
from specdec.experiments.bench.clock import quantiles
from specdec.sampling import DraftNoise, StepSampling
from specdec.step import Step
from specdec.target import Target
from specdec.tree.token_tree import TokenTree

EIGHT_BILLION = {  # Llama-3-8B's shape
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
}  # fmt: skip
SMALL = {
    "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192,
}  # fmt: skip
ACCEPTED = 3  # nodes a step, the root included
WARM, STEPS, ROUNDS = 4, 24, 5
TIME, HOST = 1.15, 0.03  # targets: step over floor, and the host's share


@dataclass(frozen=True)
class StepCell:
    """Slots, nodes of every tree, committed tokens of every slot."""

    batch: int
    nodes: int
    context: int

    @property
    def key(self) -> str:
        """Its name in the result."""
        return f"B={self.batch} N={self.nodes} L={self.context}"


def step_cells(device: str) -> list[StepCell]:
    """What is measured."""
    if device == "cpu":
        return [StepCell(2, 4, 100)]
    contexts = ((1, 1024), (1, 16384), (8, 4096), (32, 1024), (32, 4096))
    return [StepCell(batch, nodes, context) for batch, context in contexts for nodes in (1, 16)]


def random_model(device: str) -> LlamaForCausalLM:
    """A Llama of the shape for this device, in bfloat16 on a GPU."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.device(device):
        config = LlamaConfig(**(EIGHT_BILLION if device == "cuda" else SMALL), dtype=dtype)
        return LlamaForCausalLM(config).to(dtype).eval()


class AnyChain:
    """Drafts zeros."""

    def __init__(self, nodes: int):
        self.needs = DraftNeeds(max_nodes=nodes, on_device=True)

    def open(self, capacity: int, max_length: int, device: torch.device) -> None:
        """Keeps no state."""

    def start(self, state: None, slots: list[int], prompts: list[list[int]], prefill: TargetOutput) -> None:
        """Learns nothing."""

    def propose(self, state: None, roots: Tensor, noise: DraftNoise) -> TokenTree:
        """A chain of zeros."""
        return TokenTree.chain(torch.cat([roots[:, None], roots.new_zeros(len(roots), self.needs.max_nodes - 1)], 1))

    def observe(self, state: None, tree: TokenTree, verdict: Verdict, output: TargetOutput) -> None:
        """Learns nothing."""


@dataclass(frozen=True)
class Accepting:
    """Accepts the first `count` nodes of a chain, after looking at the logits as greedy decoding does."""

    count: int
    lossless: ClassVar[bool] = False
    shared_noise: ClassVar[bool] = True

    def __call__(self, tree: TokenTree, logits: Tensor, sampling: StepSampling) -> Verdict:
        """See AcceptanceRule."""
        node = torch.arange(tree.max_nodes, device=logits.device)
        path = torch.where(node < self.count, node, -1).expand(tree.batch_size, -1)
        num_accepted = torch.full_like(tree.sizes, min(self.count, tree.max_nodes))
        return Verdict(path, num_accepted, logits.argmax(-1)[:, 0])


@torch.inference_mode()
def measure_step(model: LlamaForCausalLM, cell: StepCell, copy_bandwidth: float | None) -> dict[str, Any]:
    """The entry of a cell: on CUDA seconds of a step, its share of the floor and the host's share."""
    device = model.device
    accepted = min(ACCEPTED, cell.nodes)
    longest = cell.context + accepted * (WARM + STEPS + 2)
    kind = CapturedStep if device.type == "cuda" else Step
    step = kind(Target(model), AnyChain(cell.nodes), Accepting(accepted), cell.batch, longest)

    def begin() -> None:
        step.target.lengths.fill_(cell.context)
        step.roots.zero_()

    begin()
    for _ in range(WARM):
        step([], _unheard)
    read: list[float] = []
    launched: list[float] = []
    for _ in range(ROUNDS):
        for seconds, run in ((read, _and_read), (launched, _launch)):
            begin()
            seconds.append(_timed(device, lambda run=run: run(step)) / STEPS)  # type: ignore[misc]
    grown = int(step.target.lengths[0]) - cell.context
    entry: dict[str, Any] = {"cell": vars(cell), "red": [] if grown == accepted * STEPS else ["lengths"]}
    if copy_bandwidth is not None:
        weights = sum(p.nbytes for p in model.parameters()) - model.get_input_embeddings().weight.nbytes
        floor = (weights + cell.batch * cell.context * _kv_bytes(step)) / copy_bandwidth
        typical = quantiles(read).p50
        entry |= {"seconds": list(quantiles(read)), "floor": floor, "over_floor": typical / floor}
        entry["host_share"] = max(0.0, 1 - quantiles(launched).p50 / typical)
    return entry


def _and_read(step: Step) -> None:
    """Steps as the loop makes them: the host reads each, on a GPU one late."""
    flights: deque[Flight] = deque()
    late = steps_late(step.roots.device)
    for _ in range(STEPS):
        flights.append(Flight.begin(step([], _unheard), [None] * step.capacity))
        if len(flights) > late:
            flights.popleft().read()


def _launch(step: Step) -> None:
    """Steps that nobody reads."""
    for _ in range(STEPS):
        step([], _unheard)


def _timed(device: torch.device, run: Callable[[], None]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _kv_bytes(step: Step) -> int:
    """Of one token."""
    return step.target.cache.nbytes // (step.capacity * step.target.cache.room)


def _unheard(phase: str) -> None:
    """No clock."""
