"""What the host backends need once per step and reuse in every layer: lengths, pages, additive masks."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specdec.kernels.tree_attention.naive import visible_nodes, visible_slots

_BIAS_BYTES = 64 << 20  # biases of one plan kept for the next layers, at most


class Span(NamedTuple):
    """Some consecutive rows of one sequence and the slots they may read."""

    sequence: int
    first: int  # rows first:end of the packed batch
    end: int
    context: int
    size: int  # the newest node any of the rows sees, plus one
    chain_offset: int  # causal chains: row `first` sees nodes 0 .. chain_offset


@dataclass(frozen=True, slots=True)
class Plan:
    """Host-side lengths of one step. Build it once with `make_plan`, pass it to every layer."""

    block_table: Tensor  # [B, P] int32
    words: Tensor | None  # [R, W] int64
    spans: tuple[Span, ...]  # one for every sequence that has rows and slots
    rows: int  # R
    covered: bool  # every row belongs to a span
    longest: int  # slots of the longest span
    pages: list[list[int]]  # block_table on the host
    _bits: list[Tensor] = field(default_factory=list, repr=False)  # [R, largest size] bool, once it is needed
    _biases: dict[tuple[object, ...], tuple[int, Tensor | None]] = field(default_factory=dict, repr=False)
    _runs: dict[tuple[int, int, int], list[int]] = field(default_factory=dict, repr=False)
    _paths: dict[tuple[int, int], list[tuple[int, int, Tensor | None]]] = field(default_factory=dict, repr=False)
    _chains: list[Any] = field(default_factory=list, repr=False)  # see chains.py
    calls: dict[tuple[int, int], Any] = field(default_factory=dict, repr=False)  # see cpp.py
    _kept: list[int] = field(default_factory=lambda: [0], repr=False)  # bytes of _biases

    def nodes(self, span: Span) -> Tensor:
        """`[rows, size]` bool: the nodes each row of the span sees."""
        if self.words is None:
            device = self.block_table.device
            row = torch.arange(span.end - span.first, device=device)[:, None]
            return torch.arange(span.size, device=device)[None] <= row + span.chain_offset
        if not self._bits:
            self._bits.append(visible_nodes(self.words, self.rows, max(s.size for s in self.spans)))
        return self._bits[0][span.first : span.end, : span.size]

    def paths(self, span: Span, window: int) -> list[tuple[int, int, Tensor | None]]:
        """The slots that each row of the span sees, in the order of its path: `(start, end, None)` where they lie side
        by side, else their indices `[S]` as the third; `start == end` for none at all."""
        key = (span.first, window)
        if key not in self._paths:
            self._paths[key] = [self._path(span, nodes, window) for nodes in self._listed(span)]
        return self._paths[key]

    def _listed(self, span: Span) -> list[list[int]]:
        """The nodes that each row of the span sees."""
        if self.words is None:
            return [list(range(row + span.chain_offset + 1)) for row in range(span.end - span.first)]
        return [[node for node, seen in enumerate(row) if seen] for row in self.nodes(span).tolist()]

    def _path(self, span: Span, nodes: list[int], window: int) -> tuple[int, int, Tensor | None]:
        end = span.context + len(nodes)
        start = max(0, end - window) if window else 0
        if not nodes or nodes[-1] == len(nodes) - 1:
            return start, end, None
        slots = [*range(start, span.context), *(span.context + node for node in nodes)][start - end :]
        return start, end, torch.tensor(slots, device=self.block_table.device)

    def bias(self, span: Span, window: int, group: int, dtype: torch.dtype) -> tuple[int, Tensor | None]:
        """The first slot that any row of the span sees, and what to add to the scores from there on.

        Args:
            span: rows and slots.
            window: sliding window, 0 for none.
            group: how often the rows are repeated (query heads of one KV head, heads outermost).
            dtype: dtype of the bias.

        Returns:
            `(start, bias)`; bias is `[group * rows, context + size - start]`, 0 or -inf; None when all is visible.
        """
        if window >= span.context + span.size:
            window = 0
        key = (span.first, span.end, window, group, dtype)
        found = self._biases.get(key)
        if found is None:
            found = self._make_bias(span, window, group, dtype)
            size = 0 if found[1] is None else found[1].nbytes
            if self._kept[0] + size <= _BIAS_BYTES:
                self._biases[key] = found
                self._kept[0] += size
        return found

    def _make_bias(self, span: Span, window: int, group: int, dtype: torch.dtype) -> tuple[int, Tensor | None]:
        if window == 0 and self._sees_all(span):
            return 0, None
        nodes, start = self.nodes(span), 0  # [rows, size]
        if window:
            seen = visible_slots(nodes, span.context, window)  # [rows, context + size]
            start = int(seen.any(0).int().argmax())
            if bool(seen[:, start:].all()):
                return start, None
            hidden, first = ~seen[:, start:], 0
        else:
            hidden, first = ~nodes, span.context
        rows, slots = nodes.shape[0], span.context + span.size - start
        bias = torch.zeros(group, rows, slots, dtype=dtype, device=nodes.device)
        bias[:, :, first:].masked_fill_(hidden, float("-inf"))
        return start, bias.view(group * rows, slots)

    def _sees_all(self, span: Span) -> bool:
        """Whether every row of the span sees every node."""
        if self.words is None:
            return span.chain_offset + 1 >= span.size
        if span.end - span.first > 1 and span.size > 1 and span.end - span.first >= span.size:
            return False  # as many rows as nodes: the root's own row sees no other node
        whole, rest = divmod(span.size, 64)
        full = [-1] * whole + [(1 << rest) - 1] * (rest > 0)
        return all(row[: len(full)] == full for row in self.words[span.first : span.end].tolist())

    def read(self, pool: Tensor, span: Span, start: int) -> Tensor:
        """Slots `start : context + size` of the span's sequence. pool `[pages, Hkv, page, D]` -> `[1, Hkv, S, D]`.

        A view when the slots lie in one page, or in pages that are one piece of memory, else a copy. Slots past the
        tree are never in the result.
        """
        page, end = pool.shape[2], span.context + span.size
        pages = self.pages[span.sequence]
        if end <= page:  # a dense cache
            return pool[pages[0] : pages[0] + 1, :, start:end]
        low, high = start // page, (end - 1) // page
        if low == high:
            return pool[pages[low] : pages[low] + 1, :, start - low * page : end - low * page]
        key = (span.sequence, low, high)
        runs = self._runs.get(key)
        if runs is None:
            runs = self._runs[key] = _runs(pages[low : high + 1])
        if len(runs) == 1 and pool.stride(0) == page * pool.stride(2):  # the pages are one piece of memory
            _, heads, _, size = pool.shape
            first = pool.storage_offset() + runs[0] * pool.stride(0) + (start - low * page) * pool.stride(2)
            return pool.as_strided((1, heads, end - start, size), (0, *pool.stride()[1:]), first)
        held = torch.cat([pool[number] for number in pages[low : high + 1]], 1)  # [Hkv, pages * page, D]
        return held[None, :, start - low * page : end - low * page]


def _runs(pages: list[int]) -> list[int]:
    """The first ones of the stretches of following numbers."""
    return [page for i, page in enumerate(pages) if not i or page != pages[i - 1] + 1]


def make_plan(
    block_table: Tensor,  # [B, P] int32
    row_starts: Tensor,  # [B + 1] int32
    context_lens: Tensor,  # [B] int32
    tree_sizes: Tensor,  # [B] int32
    words: Tensor | None,  # [R, W] int64
    rows: int | None = None,
) -> Plan:
    """Read the lengths of one step to the host.

    Args:
        block_table, row_starts, context_lens, tree_sizes, words: as in `tree_attention`.
        rows: number of rows R when words is None; default row_starts[-1].
    """
    starts: list[int] = row_starts.tolist()
    total = starts[-1] if rows is None else rows
    if words is not None:
        total = words.shape[0]
    spans = []
    live = 0
    for b, (context, size) in enumerate(zip(context_lens.tolist(), tree_sizes.tolist(), strict=True)):
        first, end = starts[b], starts[b + 1]
        if first == end or context + size == 0:
            continue
        live += end - first
        if words is None and end - first > size:  # padding behind a chain sees the context alone
            if size:
                spans.append(Span(b, first, first + size, context, size, 0))
            if context:
                spans.append(Span(b, first + size, end, context, 0, -1))
            else:
                live -= end - first - size
            continue
        spans.append(Span(b, first, end, context, size, size - (end - first)))
    longest = max((span.context + span.size for span in spans), default=0)
    return Plan(block_table, words, tuple(spans), total, live == total, longest, block_table.tolist())


def chunks(span: Span, rows: int) -> Iterator[Span]:
    """Cut a causal chain into spans of at most `rows` rows, each reading no slot past its own last row."""
    for first in range(span.first, span.end, rows):
        end = min(first + rows, span.end)
        offset = span.chain_offset + first - span.first
        yield Span(span.sequence, first, end, span.context, min(span.size, offset + end - first), offset)
