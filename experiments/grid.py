"""A grid: every method in several cells, by how many are served together, by context, by tree size.

A cell's methods are measured against plain decoding in the same cell. They are methods like any others, with names of
their own: `ngram_b4_c512_n8` serves 4 questions at once after 512 tokens of context, with trees of 8 nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import lcm
from typing import Any

from specdec import registry

Spec = dict[str, Any]
AXES = {"batch": 1, "context": 1, "nodes": 2}  # and the least that makes sense
LETTERS = {"batch": "b", "context": "c", "nodes": "n"}


@dataclass(frozen=True, slots=True)
class Place:
    """A method's cell.

    Attributes:
        family: the method's name without the cell.
        batch: questions served together.
        context: tokens of every prompt; None for as many as it has.
        nodes: most nodes of a tree, the root included; None for the method's own setting.
    """

    family: str
    batch: int
    context: int | None = None
    nodes: int | None = None

    @property
    def name(self) -> str:
        """Of the method in this cell."""
        parts = [f"_{LETTERS[a]}{getattr(self, a)}" for a in AXES if getattr(self, a) is not None]
        return self.family + "".join(parts)

    @property
    def about(self) -> Spec:
        """For summary.json."""
        return {"family": self.family, **{axis: getattr(self, axis) for axis in AXES}}


def read_grid(raw: Any) -> list[Spec]:
    """Every cell as {batch, context, nodes}, once, null for what it does not say; none without a grid.

    Args:
        raw: a list of mappings from axes to lists of values; of each, all combinations.

    Raises:
        ValueError: it is something else.
    """
    if not raw:
        return []
    expected = "a list of mappings such as {batch: [1, 4], nodes: [8, 16]}"
    if not isinstance(raw, list) or not all(isinstance(part, Mapping) and part for part in raw):
        raise ValueError(f"grid is {raw!r}; expected {expected}")
    cells: list[Spec] = []
    for part in raw:
        for axis, values in part.items():
            if axis not in AXES:
                raise registry.unknown("axis of grid", str(axis), AXES)
            whole = isinstance(values, list) and all(type(v) is int and v >= AXES[axis] for v in values)
            if not whole or not values:
                raise ValueError(f"grid: {axis} is {values!r}; expected a list of numbers of at least {AXES[axis]}")
        for values in product(*part.values()):
            cell = dict.fromkeys(AXES) | dict(zip(part, values, strict=True))
            if cell not in cells:
                cells.append(cell)
    return cells


def sized(drafter: Spec, tree: Spec | None, nodes: int) -> tuple[Spec, Spec | None] | None:
    """A drafter and a tree with trees of at most so many nodes, the root included; None if neither has such a setting.

    The tree's `max_nodes` or `length` is set, or that of the drafter's own tree, or the drafter's `max_nodes`.
    """
    own = drafter.get("tree")
    if tree is not None:
        made = _resized(tree, nodes)
        return None if made is None else (drafter, made)
    if isinstance(own, str) and "." not in own:
        own = registry.read_yaml("tree", own)
    if isinstance(own, Mapping):
        made = _resized(own, nodes)
        return None if made is None else ({**drafter, "tree": made}, None)
    return ({**drafter, "max_nodes": nodes}, None) if "max_nodes" in drafter else None


def _resized(tree: Mapping[str, Any], nodes: int) -> Spec | None:
    if "max_nodes" in tree:
        return {**tree, "max_nodes": nodes}
    return {**tree, "length": nodes - 1} if "length" in tree else None


def check_counts(places: Sequence[Place | None], questions: int) -> None:
    """See that all groups of questions are full, so that a cell is what it is called.

    Raises:
        ValueError: some would not be.
    """
    batches = {place.batch for place in places if place is not None}
    if uneven := sorted(batch for batch in batches if questions % batch):
        whole = lcm(*batches)
        raise ValueError(
            f"grid: {questions} questions cannot be served {uneven[0]} at once without a smaller rest; give a multiple "
            f"of {whole}, as in data.limit={max(questions // whole, 1) * whole}, or another grid.batch"
        )


def check_contexts(places: Sequence[Place | None], room: int, new_tokens: int) -> None:
    """See that prompts and answers have room in the target's positions.

    Args:
        room: most tokens of a prompt; 0 for no limit.
        new_tokens: of an answer.

    Raises:
        ValueError: they have not.
    """
    longest = max((place.context or 0 for place in places if place is not None), default=0)
    if room and longest > room:
        raise ValueError(
            f"grid: a context of {longest} and measure.max_new_tokens={new_tokens} are more than the target's "
            f"positions; expected a context of at most {room}"
        )


def lacking(places: Sequence[Place | None]) -> Iterator[str]:
    """A sentence for the methods, but plain decoding, that are in no cell with `nodes` where others are."""
    found = [place for place in places if place is not None]
    drafted = {place.family for place in found if place.nodes}
    if drafted:
        others = [name for name in dict.fromkeys(p.family for p in found) if name not in drafted]
        if others:
            yield f"grid: the trees of {', '.join(others)} have no size to set: not in the cells with nodes"
