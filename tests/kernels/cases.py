"""Batches of trees over paged pools, with NaN wherever no one may read, and the error they are judged by."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from specdec.kernels.tree_attention import tree_attention

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def random_parents(size: int, generator: torch.Generator) -> list[int]:
    """A random topological tree: -1, then any earlier node."""
    return [-1, *(int(torch.randint(0, j, (1,), generator=generator)) for j in range(1, size))][:size]


def ancestors(parents: list[int]) -> Tensor:
    """`[size, size]` bool: row j has its ancestors and itself."""
    seen = torch.zeros(len(parents), len(parents), dtype=torch.bool)
    for j, parent in enumerate(parents):
        if parent >= 0:
            seen[j] = seen[parent]
        seen[j, j] = True
    return seen


def pack_bits(seen: Tensor, width: int) -> Tensor:
    """`[rows, nodes]` bool -> `[rows, width]` int64."""
    padded = torch.zeros(seen.shape[0], width * 64, dtype=torch.bool)
    padded[:, : seen.shape[1]] = seen
    weight = torch.ones(64, dtype=torch.int64) << torch.arange(64)
    return (padded.view(-1, width, 64) * weight).sum(2)  # distinct bits: the sum is their union


@dataclass(frozen=True)
class Case:
    """Arguments of `tree_attention` and what of them is optional."""

    tensors: dict[str, Any]
    options: dict[str, Any]

    def run(self, backend: str, **more: Any) -> Tensor:
        return tree_attention(**self.tensors, **{**self.options, **more}, backend=backend)  # type: ignore[arg-type]

    def to(self, dtype: torch.dtype) -> "Case":
        """The same numbers in another dtype."""
        moved = {k: v.to(dtype) if k in ("q", "k_pool", "v_pool") else v for k, v in self.tensors.items()}
        return replace(self, tensors=moved)

    def with_options(self, **options: Any) -> "Case":
        return replace(self, options={**self.options, **options})


def make_case(
    contexts: list[int],
    sizes: list[int],
    *,
    rows: list[int] | None = None,  # of each sequence; fewer than sizes: the newest nodes, more: padding
    heads: int = 2,
    group: int = 2,
    dim: int = 32,
    value_dim: int | None = None,
    page: int = 64,
    dtype: torch.dtype = torch.float32,
    pool_dtype: torch.dtype | None = None,
    chain: bool = False,  # words None
    riders: bool = False,  # visibility that no tree has
    sinks: bool = False,
    seed: int = 0,
    **options: Any,
) -> Case:
    """Random numbers, trees and shuffled pages. Slots that belong to no one are NaN, table entries past the end -1."""
    generator = torch.Generator().manual_seed(seed)
    rows = sizes if rows is None else rows
    value_dim = value_dim or dim
    batch = len(sizes)
    needs = [-(-(context + size) // page) for context, size in zip(contexts, sizes, strict=True)]
    width = max([*needs, 1]) + 1
    pages = sum(needs) + 2
    order = torch.randperm(pages, generator=generator).tolist()
    table = torch.full((batch, width), -1, dtype=torch.int32)
    pools = [torch.full((pages, heads, page, d), float("nan")) for d in (dim, value_dim)]
    for b, need in enumerate(needs):
        for i in range(need):
            index = order.pop()
            table[b, i] = index
            used = min(page, contexts[b] + sizes[b] - i * page)
            for pool in pools:
                pool[index, :, :used] = torch.randn(heads, used, pool.shape[3], generator=generator)
    words = []
    node_words = max(1, -(-max(sizes) // 64))
    for size, count in zip(sizes, rows, strict=True):
        seen = ancestors(random_parents(size, generator))
        if riders:
            seen |= torch.rand(seen.shape, generator=generator) < 0.3
        seen = seen[max(size - count, 0) :]
        padding = torch.zeros(max(count - size, 0), size, dtype=torch.bool)
        words.append(pack_bits(torch.cat([seen, padding]), node_words))
    q = torch.randn(sum(rows), heads * group, dim, generator=generator).to(dtype)
    pool_dtype = pool_dtype or dtype
    tensors = {
        "q": q,
        "k_pool": pools[0].to(pool_dtype),
        "v_pool": pools[1].to(pool_dtype),
        "block_table": table,
        "row_starts": torch.tensor([0, *rows]).cumsum(0).int(),
        "context_lens": torch.tensor(contexts, dtype=torch.int32),
        "tree_sizes": torch.tensor(sizes, dtype=torch.int32),
        "words": None if chain else torch.cat(words),
    }
    if sinks:
        options["sinks"] = torch.randn(heads * group, generator=generator)
    tensors = {k: v if v is None else v.to(DEVICE) for k, v in tensors.items()}
    options = {k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in options.items()}
    return Case(tensors, options)


def check(case: Case, backend: str | Callable[[], Tensor], **more: Any) -> Tensor:
    """The error of a backend (or of what is called) against float64 is at most twice that of plain torch."""
    out = backend() if callable(backend) else case.run(backend, **more)
    exact = case.to(torch.float64).run("naive")
    plain = case.run("naive")
    assert out.shape == exact.shape
    assert out.dtype == case.tensors["q"].dtype
    assert torch.isfinite(out).all()
    if not out.numel():
        return out
    error = (out - exact).abs().max().item()
    allowed = 2 * (plain - exact).abs().max().item()
    # few numbers: plain torch may be lucky, so one rounding of the result is free; in float32 and float64, where all is
    # rounding and the order of a sum decides, sixteen are
    eps = torch.finfo(out.dtype).eps
    slack = exact.abs().max().item() * eps * (0.5 if out.dtype in (torch.bfloat16, torch.float16) else 16.0)
    assert error <= allowed + slack, f"error {error:.2e}, plain torch {allowed / 2:.2e}"
    return out
