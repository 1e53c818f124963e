"""Which batches are timed: cells, in the order in which they are worth the most if time runs out."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

RAGGED = (65536, *[1024] * 31)
EVEN = (sum(RAGGED) // len(RAGGED),) * len(RAGGED)  # the same slots in equal shares
GRIDS = ("small", "full", "cpu")


@dataclass(frozen=True)
class Cell:
    """One batch of trees (or chains) of equal size over contexts that may differ.

    Attributes:
        contexts: committed slots of every sequence.
        nodes: N, rows of every sequence.
        heads, kv_heads, dim: query heads, KV heads, head size.
        dtype: of the queries, by torch's name.
        kv_dtype: of the pools.
        chain: causal chains without words, which kernels without tree masks can do.
        plan: the kernel's plan, which the layers of a step share, is made in every call; without rivals.
        flex: FlexAttention is among the rivals; each cell costs it a compilation with max-autotune.
    """

    contexts: tuple[int, ...]
    nodes: int
    heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    dtype: str = "bfloat16"
    kv_dtype: str = "bfloat16"
    chain: bool = False
    plan: bool = False
    flex: bool = False

    @property
    def batch(self) -> int:
        """B."""
        return len(self.contexts)

    @property
    def even(self) -> bool:
        """All contexts are equal."""
        return len(set(self.contexts)) == 1

    @property
    def context(self) -> str:
        """The contexts in words."""
        return str(self.contexts[0]) if self.even else f"{max(self.contexts)} + {self.batch - 1} x {min(self.contexts)}"

    @property
    def key(self) -> str:
        """Its name in a result."""
        shape = "chain" if self.chain else "tree"
        kinds = self.dtype if self.kv_dtype == self.dtype else f"{self.dtype} over {self.kv_dtype}"
        kinds += ", with the plan" * self.plan
        return f"{shape} B={self.batch} N={self.nodes} L={self.context} {self.heads}/{self.kv_heads}/{self.dim} {kinds}"

    @property
    def about(self) -> dict[str, object]:
        """What a reader of a result sorts by."""
        heads = f"{self.heads}/{self.kv_heads}/{self.dim}"
        return {"batch": self.batch, "nodes": self.nodes, "context": self.context, "heads": heads, "dtype": self.dtype}

    @property
    def slots(self) -> int:
        """Slots that are read, of all sequences."""
        return sum(self.contexts) + self.batch * self.nodes


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
    """Batches of steps: one small one on a CPU, to be checked."""
    if device == "cpu":
        return [StepCell(2, 4, 100)]
    contexts = ((1, 1024), (1, 16384), (8, 4096), (32, 1024), (32, 4096))
    return [StepCell(batch, nodes, context) for batch, context in contexts for nodes in (1, 16)]


def cells(grid: str) -> list[Cell]:
    """The cells of a grid, each once, neighbours sharing their pools where order allows."""
    if grid == "cpu":
        return [
            Cell(
                (context,) * batch,
                nodes,
                heads,
                kv_heads,
                dim,
                dtype,
                dtype,
                flex=batch == 1 and nodes == 16 and (dim == 128 or context == 1024),
            )
            for dtype, (heads, kv_heads, dim), context, batch, nodes in product(
                ("bfloat16", "float32"), ((8, 4, 64), (32, 8, 128)), (256, 1024, 4096), (1, 8), (1, 8, 16, 32)
            )
        ]
    small = _core((4096, 16384), (1, 8, 32), (1, 16, 64)) + _core((16384,), (8,), (8, 32))
    small += [Cell((1024,) * b, 16) for b in (1, 8, 32)] + [Cell((65536,) * b, 16) for b in (1, 8)]
    small += [Cell(contexts, 16, flex=contexts is RAGGED) for contexts in (EVEN, RAGGED)]
    small += [Cell((16384,) * 8, n, kv_dtype="float8_e4m3fn") for n in (1, 16)]
    small += [Cell((16384,) * b, 8, chain=True) for b in (1, 8)]
    small.append(Cell((16384,) * 8, 16, plan=True))
    if grid == "small":
        return list(dict.fromkeys(small))
    contexts, batches, nodes = (1024, 4096, 16384, 65536), (1, 8, 32), (1, 8, 16, 32, 64, 128)
    rest = _core(contexts, batches, nodes)
    rest += [Cell((c,) * b, n, chain=True) for c, b, n in product(contexts, batches, (1, 8, 16))]
    rest += [
        Cell((c,) * b, n, kv_dtype="float8_e4m3fn") for c, b, n in product((16384, 65536), (8, 32), (1, 8, 16, 32))
    ]
    rest += [Cell((c,) * b, n, heads=64) for c, b, n in product(contexts, batches, nodes)]
    return list(dict.fromkeys(small + rest))


def _core(contexts: tuple[int, ...], batches: tuple[int, ...], nodes: tuple[int, ...]) -> list[Cell]:
    return [
        Cell((c,) * b, n, flex=c == 16384 and b in (1, 8) and n in (16, 32))
        for c, b, n in product(contexts, batches, nodes)
    ]
