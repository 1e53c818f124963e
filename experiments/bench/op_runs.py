"""The small operations on random trees. A new one is one function and one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from specdec.kernels.accept import accept
from specdec.kernels.ancestor_words import ancestor_words
from specdec.kernels.kv_commit import kv_commit
from specdec.kernels.kv_write import kv_write
from specdec.kernels.ngram_match import ngram_match
from specdec.kernels.target_tokens import target_tokens
from specdec.kernels.tree_rejection import tree_rejection

Outputs = Sequence[Tensor]
Run = Callable[[str], Outputs]  # backend -> what it returns or has written
Make = Callable[[int, int, torch.device], Run]  # batch, nodes


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
    return _target_tokens(batch, nodes, device, vocab_size=32000, top_k=50)


def _draw_wide(batch: int, nodes: int, device: torch.device) -> Run:
    return _target_tokens(batch, nodes, device, vocab_size=128256 if device.type == "cuda" else 1000, top_k=0)


def _target_tokens(batch: int, nodes: int, device: torch.device, vocab_size: int, top_k: int) -> Run:
    logits = _logits(batch, nodes, vocab_size, device)
    parents, sizes = _trees(batch, nodes, device)
    _, depths = ancestor_words(parents, sizes)
    sampling = _sampling(sizes, top_k)
    return lambda backend: [
        target_tokens(logits, depths=depths, sizes=sizes, **sampling, backend=backend)  # type: ignore[arg-type]
    ]


def _reject(batch: int, nodes: int, device: torch.device) -> Run:
    """Children drawn from a draft that is near the target, so that some are accepted and some are not."""
    logits = _logits(batch, nodes, 32000 if device.type == "cuda" else 1000, device)
    generator = torch.Generator(device).manual_seed(6)
    noise = torch.randn(logits.shape, generator=generator, device=device)
    draft_probs = noise.add_(logits).softmax(-1)  # [B, N, V] float32
    parents, sizes = _trees(batch, nodes, device)
    drawn = [
        torch.multinomial(probs[of.clamp_min(0).long()], 1, generator=generator)[:, 0]
        for probs, of in zip(draft_probs, parents, strict=True)
    ]
    tokens, sampling = torch.stack(drawn), _sampling(sizes, 0)
    return lambda backend: tree_rejection(
        tokens, parents, sizes, logits, draft_probs, **sampling, backend=backend,  # type: ignore[arg-type]
    )  # fmt: skip


def _logits(batch: int, nodes: int, vocab_size: int, device: torch.device) -> Tensor:
    """`[B, N, V]` bfloat16; made on the device, as they may be many."""
    generator = torch.Generator(device).manual_seed(5)
    return torch.randn(batch, nodes, vocab_size, generator=generator, device=device, dtype=torch.bfloat16) * 2


def _sampling(sizes: Tensor, top_k: int) -> dict[str, Tensor]:
    """Temperature 1, top-p 0.9, no min-p."""
    batch, device = len(sizes), sizes.device
    temperature, top_p, min_p = (torch.full((batch,), x, device=device) for x in (1.0, 0.9, 0.0))
    return {
        "positions": torch.full_like(sizes, 1024),
        "seeds": torch.arange(2 * batch, dtype=torch.int32, device=device).view(2, batch),
        "temperature": temperature, "top_k": torch.full_like(sizes, top_k), "top_p": top_p, "min_p": min_p,
    }  # fmt: skip


OPS: dict[str, tuple[tuple[str, ...], Make]] = {  # backends, and how to make its run
    "ancestor_words": (("naive", "host", "triton"), _words),
    "accept": (("naive", "host", "triton"), _accept),
    "kv_commit": (("naive", "triton"), _commit),
    "kv_write": (("naive", "triton"), _write),
    "ngram_match": (("naive", "triton"), _match),
    "target_tokens": (("naive", "triton"), _draw),
    "target_tokens_top_p": (("naive", "triton"), _draw_wide),  # over a vocabulary of 128k on CUDA
    "tree_rejection": (("naive", "triton"), _reject),
}
