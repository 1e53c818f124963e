"""What a step costs by the rows it verifies: a curve measured by `specdec bench curve`, or a straight line."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

Curve = str | Path | float | None  # as settings give it: a file, what a row costs, or nothing


@dataclass(frozen=True, slots=True)
class CostCurve:
    """Points of a curve, joined by straight lines. Before the first it is level, behind the last it goes on as it was.

    Attributes:
        rows: nodes of all sequences together, ascending.
        cost: of a step with so many, in steps of plain decoding.
    """

    rows: tuple[float, ...]
    cost: tuple[float, ...]

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in pairwise(self.rows)) and min(self.rows, default=0) > 0
        if len(self.rows) != len(self.cost) or len(self.rows) < 2 or not rising or min(self.cost) <= 0:
            raise ValueError(
                "a cost curve needs at least two points, rows ascending from above 0 and costs above 0; "
                f"got rows {list(self.rows)} and costs {list(self.cost)}"
            )

    def __call__(self, rows: float) -> float:
        """The cost of a step with `rows` rows."""
        if rows <= self.rows[0]:
            return self.cost[0]
        right = min(bisect_right(self.rows, rows), len(self.rows) - 1)
        (x0, x1), (y0, y1) = self.rows[right - 1 : right + 1], self.cost[right - 1 : right + 1]
        slope = (y1 - y0) / (x1 - x0)
        if rows > x1:  # no noise makes more rows cheaper than were measured
            return y1 + max(slope, 0.0) * (rows - x1)
        return y0 + slope * (rows - x0)

    @staticmethod
    def make(curve: Curve) -> CostCurve:
        """From a file of `specdec bench curve`; from what a row adds to the first's cost; None: rows are free.

        Raises:
            ValueError: the file is no such file, or the number is below 0.
        """
        if curve is None or isinstance(curve, int | float):
            slope = float(curve or 0.0)
            if not slope >= 0:
                raise ValueError(f"a row's cost is {curve}; expected at least 0, or a file of `specdec bench curve`")
            return CostCurve((1.0, 2.0), (1.0, 1.0 + slope))
        measured = read_curve(curve)
        batch = measured.get("batch", 1)
        return CostCurve(tuple(batch * n for n in measured["nodes"]), tuple(measured["cost"]))


def sequences_curve(curve: Curve) -> CostCurve | None:
    """What the curve's file says of steps of plain decoding, by sequences; None if it does not, or there is no file."""
    measured = read_curve(curve) if isinstance(curve, str | Path) else {}
    if "sequences" not in measured:
        return None
    return CostCurve(tuple(measured["sequences"]), tuple(measured["sequences_cost"]))


def read_curve(file: str | Path) -> Mapping[str, Any]:
    """What `specdec bench curve` has written.

    Raises:
        ValueError: it is not there, or something else.
    """
    content = read_json(file, "cost curve")
    if not isinstance(content, dict) or not {"nodes", "cost"} <= content.keys():
        raise ValueError(f"{str(file)!r} is no cost curve: it has no `nodes` and `cost`; see: specdec bench curve")
    return content


def read_json(file: str | Path, what: str) -> Any:
    """What a file of measurements holds.

    Raises:
        ValueError: it is not there, or not JSON.
    """
    try:
        return json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{what} {str(file)!r} cannot be read ({error}); see: specdec bench curve") from error


def measured_draft_cost(curve: Curve, whole: bool = False) -> float:
    """What the curve's file says of drafting a level, or a `whole` proposal; 0 if it does not, or there is no file."""
    measured = read_curve(curve) if isinstance(curve, str | Path) else {}
    return float(measured.get("draft_cost") or 0.0) * (int(measured.get("levels") or 1) if whole else 1)
