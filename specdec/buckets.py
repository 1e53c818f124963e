"""Sizes that trees are padded to, so that few graphs serve all of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from tqdm import tqdm


def bucket(nodes: int, most: int) -> int:
    """Nodes that a tree of `nodes` is padded to, when trees have `most` nodes at most."""
    power = 1 << (nodes - 1).bit_length()
    return min(power, most) if nodes <= most else power


def buckets(most: int) -> list[int]:
    """All that `bucket` gives."""
    return sorted({bucket(nodes, most) for nodes in range(1, most + 1)})


def warm(run: Callable[[int], object], sizes: Sequence[int], what: str) -> None:
    """Run every bucket once, with a progress bar on stderr."""
    for size in tqdm(sizes, f"compiling {what}", file=sys.stderr, unit="size"):
        run(size)
