"""The small operations of a step: every backend against the plain one. A new operation is one function and one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specdec.experiments.bench.clock import Turn, by_turns, device_turn, host_turn, quantiles, ratios
from specdec.kernels.accept import accept
from specdec.kernels.ancestor_words import ancestor_words
from specdec.kernels.kv_commit import kv_commit
from specdec.kernels.kv_write import kv_write
from specdec.kernels.ngram_match import ngram_match
from specdec.kernels.target_tokens import target_tokens

Json = dict[str, Any]
Outputs = Sequence[Tensor]
Run = Callable[[str], Outputs]  # backend -> what it returns or has written


class OpCell(NamedTuple):
    """A batch of trees."""

    op: str
    batch: int
    nodes: int

    @property
    def key(self) -> str:
        """Its name in a result."""
        return f"{self.op} B={self.batch} N={self.nodes}"


def op_cells(small: bool) -> list[OpCell]:
    """Every operation on a few sizes."""
    batches, nodes = ((1, 8), (8, 32)) if small else ((1, 8, 32), (8, 32, 128))
    return [OpCell(op, b, n) for op, b, n in product(OPS, batches, nodes)]


@torch.inference_mode()
def measure_op(cell: OpCell, device: torch.device, seconds: float) -> Json:
    """The entry of a cell: backends compared bit for bit, then timed by turns."""
    backends, make = OPS[cell.op]
    ours = "triton" if device.type == "cuda" else "host"
    if ours not in backends:
        return {"red": [], "gate": {}, "times_as_fast": {}, "notes": {ours: f"{cell.op} has no such backend"}}
    run, again = (make(cell.batch, cell.nodes, device) for _ in range(2))  # some write into what they were given
    right = all(torch.equal(a, b) for a, b in zip(run(ours), again("naive"), strict=True))
    entry: Json = {"gate": {ours: {"right": right}}, "red": [] if right else [ours]}
    if right:
        turns = {name: _turn(partial(run, name), device) for name in (ours, "naive")}
        samples = by_turns(turns, seconds)
        entry["times_as_fast"] = {"naive": [round(x, 3) for x in ratios(samples[ours], samples["naive"])]}
        if device.type == "cuda":
            entry["seconds"] = {name: [round(x, 9) for x in quantiles(s)] for name, s in samples.items()}
    return entry


def _turn(call: Callable[[], object], device: torch.device) -> Turn:
    return device_turn([call] * 8)[0] if device.type == "cuda" else host_turn([call])


def _trees(batch: int, nodes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    parents = (torch.rand(batch, nodes, generator=torch.Generator().manual_seed(0)) * torch.arange(nodes)).int()
    parents[:, 0] = -1
    return parents.to(device), torch.full((batch,), nodes, dtype=torch.int32, device=device)


def _words(batch: int, nodes: int, device: torch.device) -> Run:
    parents, sizes = _trees(batch, nodes, device)
    return lambda backend: ancestor_words(parents, sizes, backend=backend)  # type: ignore[arg-type]


def _accept(batch: int, nodes: int, device: torch.device) -> Run:
    parents, sizes = _trees(batch, nodes, device)
    words, _ = ancestor_words(parents, sizes)
    tokens, targets = torch.randint(0, 2, (2, batch, nodes), generator=torch.Generator().manual_seed(1)).to(device)
    return lambda backend: accept(tokens, parents, sizes, words, targets, backend=backend)  # type: ignore[arg-type]


def _arena(batch: int, nodes: int, device: torch.device, layers: int) -> tuple[Tensor, Tensor, Tensor]:
    """`[layers, B, 8, room, 128]` bfloat16, its table, and lengths."""
    length = 1024
    arena = torch.randn(layers, batch, 8, length + nodes, 128, generator=torch.Generator().manual_seed(2)).bfloat16()
    table = torch.arange(batch, dtype=torch.int32)[:, None]
    return arena.to(device), table.to(device), torch.full((batch,), length, dtype=torch.int32, device=device)


def _commit(batch: int, nodes: int, device: torch.device) -> Run:
    arena, table, lengths = _arena(batch, nodes, device, layers=4)
    depth = min(nodes, 5)
    path = torch.arange(depth, device=device).expand(batch, -1) * (nodes // depth)
    path = torch.nn.functional.pad(path, (0, nodes - depth), value=-1)
    count = torch.full((batch,), depth, dtype=torch.int32, device=device)

    def run(backend: str) -> Outputs:
        kv_commit([arena], table, lengths, path, count, backend=backend)  # type: ignore[arg-type]
        return [arena]

    return run


def _write(batch: int, nodes: int, device: torch.device) -> Run:
    arena, table, lengths = _arena(batch, nodes, device, layers=2)
    keys, values = (
        torch.randn(2, batch * nodes, 8, 128, generator=torch.Generator().manual_seed(3)).bfloat16().to(device)
    )
    sequences = torch.arange(batch, device=device).repeat_interleave(nodes)
    slots = (lengths[:, None] + torch.arange(nodes, device=device)).flatten()

    def run(backend: str) -> Outputs:
        kv_write(keys, values, arena[0], arena[1], table, sequences, slots, backend=backend)  # type: ignore[arg-type]
        return [arena]

    return run


def _match(batch: int, nodes: int, device: torch.device) -> Run:
    texts = torch.randint(0, 50, (batch, 2048), generator=torch.Generator().manual_seed(4)).to(device)
    lengths = torch.full((batch,), 2048, dtype=torch.int32, device=device)
    return lambda backend: ngram_match(texts, lengths, 1, 3, matches=nodes, backend=backend)  # type: ignore[arg-type]


def _draw(batch: int, nodes: int, device: torch.device) -> Run:
    logits = torch.randn(batch, nodes, 32000, generator=torch.Generator().manual_seed(5)).bfloat16().to(device)
    parents, sizes = _trees(batch, nodes, device)
    _, depths = ancestor_words(parents, sizes)
    positions = torch.full((batch,), 1024, dtype=torch.int32, device=device)
    seeds = torch.arange(2 * batch, dtype=torch.int32, device=device).view(2, batch)
    temperature, top_p = (torch.full((batch,), x, device=device) for x in (1.0, 0.9))
    settings = (temperature, torch.full_like(sizes, 50), top_p, torch.zeros_like(top_p))
    return lambda backend: [
        target_tokens(logits, positions, depths, sizes, seeds, *settings, backend=backend)  # type: ignore[arg-type]
    ]


OPS: dict[str, tuple[tuple[str, ...], Callable[[int, int, torch.device], Run]]] = {  # backends, and how to make its run
    "ancestor_words": (("naive", "host", "triton"), _words),
    "accept": (("naive", "host", "triton"), _accept),
    "kv_commit": (("naive", "triton"), _commit),
    "kv_write": (("naive", "triton"), _write),
    "ngram_match": (("naive", "triton"), _match),
    "target_tokens": (("naive", "triton"), _draw),
}
