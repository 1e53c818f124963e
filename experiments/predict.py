"""`predict`: what trees should bring by an acceptance vector and a cost curve, beside what they brought in this run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from specdec.experiments.acceptance_tables import count_steps
from specdec.experiments.expected import LENGTH, PROPOSE, REST, VERIFY, Terms, best_tree, factors, off, predicted
from specdec.experiments.machine_file import MEASURE
from specdec.experiments.methods import Method
from specdec.experiments.records import Row
from specdec.experiments.validation import check_counts, check_keys
from specdec.tree.acceptance import measured_acceptance
from specdec.tree.cost import CostCurve, Curve, measured_draft_cost
from specdec.tree.sequoia import read_chances

Json = dict[str, Any]
CURVE = "curve.json"  # of a run that measures it
VERIFYING = ("verify", "accept", "commit")
RESIDUE = "the loop's own time, prefills, slots that are empty while a batch ends"


@dataclass(frozen=True, slots=True)
class Settings:
    """Of `predict`.

    Attributes:
        acceptance: as `tree.acceptance` of `sequoia`; or the name of a method of this run, by what it measures: of one
            in a grid, also without the cell.
        curve, draft_cost: as of `sequoia`; or MEASURE: by this run, before it begins, in `curve_seconds`.
        budgets: nodes of trees, the root included.
        batches: sequences in a step.
        max_depth: most levels below the root.
    """

    acceptance: Any
    curve: Curve = None
    draft_cost: float | None = None
    curve_seconds: float = 20.0
    budgets: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    max_depth: int = 8

    @staticmethod
    def parse(raw: Any, methods: Sequence[Method]) -> Settings:
        """Look over the setting, before weights are loaded.

        Raises:
            ValueError: something is wrong with it.
        """
        check_keys(raw, {field.name for field in fields(Settings)}, "setting of predict")
        given = {"acceptance": None, **raw}
        names = list(dict.fromkeys(name for m in methods if m.baseline and not m.is_again for name in _names(m)))
        if given["acceptance"] is None:
            raise ValueError(
                f"predict.acceptance has no value; give chances, a file, or a method of the run: {', '.join(names)}"
            )
        if given["acceptance"] not in names:
            read_chances(given["acceptance"])
        if given.get("curve") != MEASURE:
            CostCurve.make(given.get("curve"))
        seconds = given.get("curve_seconds", 20.0)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
            raise ValueError(f"predict.curve_seconds is {seconds!r}; expected a number above 0")
        for name, least in (("budgets", 2), ("batches", 1)):
            if name in given:
                if not isinstance(given[name], list) or not given[name]:
                    raise ValueError(f"predict.{name} is {given[name]!r}; expected a list of whole numbers")
                for value in given[name]:
                    check_counts({f"predict.{name}": value}, least)
                given[name] = tuple(given[name])
        check_counts({"predict.max_depth": given.get("max_depth", 8)})
        return Settings(**given)


def prediction(
    settings: Settings,
    methods: Sequence[Method],
    shapes: Mapping[str, Any],
    entries: Sequence[Json],
    rows: Sequence[Row],
    directory: Path | None = None,
) -> Json | None:
    """`prediction` of summary.json; None where the method that the acceptance is to be of has drafted nothing.

    Args:
        shapes: by method, the paths of its tree, for those whose tree is fixed.
        entries: of summary.json.
        directory: of the run; a curve in it was measured by it.
    """
    by_method = {m.name: [row for row in rows if row["method"] == m.name] for m in methods}
    given = settings.acceptance
    if isinstance(given, str) and (named := [m.name for m in methods if given in _names(m)]):
        steps = count_steps(row for name in named for row in by_method[name]).items()
        walks = (((children, ranks), times) for (_, _, children, ranks), times in steps)
        given = measured_acceptance(walks)["acceptance"]
        if not given:
            return None
    chances, curve = read_chances(given), CostCurve.make(settings.curve)
    draft_cost = measured_draft_cost(settings.curve) if settings.draft_cost is None else settings.draft_cost
    measured_rows = curve.rows[-1] if isinstance(settings.curve, str | Path) else 0.0  # of a straight line, none was
    grid = []
    for batch in settings.batches:
        for nodes in settings.budgets:
            if found := best_tree(nodes, chances, curve, draft_cost, batch, settings.max_depth):
                depth, terms = found
                about = {"batch": batch, "nodes": nodes, "depth": depth, "extrapolated": batch * nodes > measured_rows}
                grid.append(about | terms._asdict() | {"speedup": terms.speedup})
    compared = []
    for method, entry in zip(methods, entries, strict=True):
        base = by_method.get(method.baseline or "", [])
        if method.name in shapes and base and by_method[method.name] and entry["speedup"]["ratio"]:
            expected = predicted(shapes[method.name], chances, curve, draft_cost, method.batch)
            found_terms = measured_terms(by_method[method.name], base, entry["speedup"]["ratio"])
            compared.append(_compare(method, shapes[method.name], expected, found_terms, entry["speedup"]))
    return {
        "acceptance": chances,
        "source": settings.acceptance if isinstance(settings.acceptance, str) else "given",
        "curve": {"rows": curve.rows, "cost": curve.cost, "source": _source(settings.curve, directory)},
        "draft_cost": draft_cost,
        "grid": grid,
        "methods": compared,
    }


def _source(curve: Curve, directory: Path | None) -> str:
    """Where costs come from."""
    if isinstance(curve, str | Path):
        here = directory is not None and Path(curve) == directory / CURVE
        return "measured by this run" if here else str(curve)
    return "given: rows are free" if not curve else f"given: {curve:g} a row, a straight line that nobody measured here"


def _names(method: Method) -> tuple[str, ...]:
    """Its own, and the one that all cells of a grid share."""
    return (method.name, method.place.family) if method.place else (method.name,)


def measured_terms(rows: Sequence[Row], plain: Sequence[Row], speedup: float) -> Terms:
    """Of a run, in the units of a prediction: plain steps are plain decoding's verify, accept and commit, of a forward
    pass of the batch. `rest` is what the others leave of the measured speed-up."""

    def seconds(of: Sequence[Row], *phases: str) -> float:
        return sum(row["phases"][phase] for row in of for phase in phases) / sum(row["forwards"] for row in of)

    unit = seconds(plain, *VERIFYING)
    length = 1 + sum(row["accepted"] for row in rows) / sum(row["steps"] for row in rows)
    terms = Terms(length, seconds(rows, *VERIFYING) / unit, seconds(rows, "draft") / unit)
    return terms._replace(rest=speedup / terms.speedup)


def _compare(method: Method, paths: Any, expected: Terms, measured: Terms, speedup: Json) -> Json:
    found = factors(expected, measured)
    about = {"method": method.name, "batch": method.batch, "nodes": len(paths) + 1, "depth": max(map(len, paths))}
    return about | {
        "predicted": expected._asdict() | {"speedup": expected.speedup},
        "measured": measured._asdict()
        | {name: speedup[name] for name in ("low", "high")}
        | {"speedup": speedup["ratio"]},
        "factors": found,
        "off": off(found),
    }


def words(row: Json) -> str:
    """Which terms are off, in one sentence; nothing where prediction and measurement agree."""
    if not row["off"]:
        return ""
    expected, measured = row["predicted"], row["measured"]
    said = {
        LENGTH: f"accepted length (predicted {expected['length']:.2f}, measured {measured['length']:.2f})",
        VERIFY: f"verify cost (predicted {expected['verify']:.2f}, measured {measured['verify']:.2f} plain steps)",
        PROPOSE: f"propose cost (predicted {expected['propose']:.2f}, measured {measured['propose']:.2f} plain steps)",
        REST: f"remainder ({RESIDUE}: {measured['rest']:.2f} times the speed)",
    }
    low, high = measured["low"], measured["high"]
    held = low is not None and low <= expected["speedup"] <= high
    parted = abs(measured["speedup"] / expected["speedup"] - 1) > 0.1
    start = f"predicted {expected['speedup']:.2f}x, measured {measured['speedup']:.2f}x"
    start += ", whose 95 % interval holds the prediction" if held and parted else ""
    start += "" if parted else ", by errors that cancel"
    first, *others = (said[name] for name in row["off"])
    also = f" [and as much: {'; '.join(others)}]" if others else ""
    return f"{row['method']}: {start}. Off: {first}{also}."
