"""Methods as the page shows them: in one order, each with the same colour and marker in every table and figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from specdec.experiments.machine_noise import is_again
from specdec.experiments.report import text
from specdec.experiments.report.headline import ranked
from specdec.experiments.report.run_files import RunFiles
from specdec.experiments.report.svg import Canvas

COLOURS = 8


@dataclass(frozen=True, slots=True)
class Shown:
    """A method.

    Attributes:
        class_: CSS class that gives its colour; "base" is grey.
        marker: its shape, see `Canvas.marker`.
        entry: of summary.json.
        tpots: seconds per output token, a request each.
        step_seconds: of a step of decoding, for all that were served together, on average.
        ttfts: seconds to the first token, a request each.
    """

    name: str
    class_: str
    marker: int
    entry: Mapping[str, Any]
    tpots: Sequence[float]
    step_seconds: float | None
    ttfts: Sequence[float] = ()

    @property
    def is_again(self) -> bool:
        """Whether it is plain decoding's second measurement, which tells the noise and is no drafter."""
        return is_again(self.entry)

    @property
    def cell(self) -> Mapping[str, Any] | None:
        """Where it is in the run's grid; None without a grid."""
        found: Mapping[str, Any] | None = self.entry["cell"]
        return found

    @property
    def family(self) -> str:
        """Its name, without the cell."""
        return family_of(self.entry)

    @property
    def label(self) -> str:
        """The words that must stand beside its speed-up, or nothing."""
        return str((self.entry["speedup"] or {}).get("label") or "")

    @property
    def ratio(self) -> float | None:
        """Its speed-up, if it has one."""
        found: float | None = (self.entry["speedup"] or {}).get("ratio")
        return found

    @property
    def length(self) -> float | None:
        """Its mean accepted length, pooled."""
        return length_of(self.entry)

    @property
    def shares(self) -> dict[str, float | None]:
        """Of decoding time, by phase."""
        return dict(self.entry["metrics"].get("phase_share") or {})

    def depths(self, kind: str) -> list[float | None]:
        """Acceptance by depth, `conditional` or `unconditional`."""
        return list((self.entry["metrics"].get("acceptance_by_depth") or {}).get(kind) or [])

    def tpot(self, quantile: str) -> float | None:
        """p20, p50, p80 or p99."""
        found: float | None = (self.entry["metrics"].get("tpot") or {}).get(quantile)
        return found

    def ttft(self, quantile: str) -> float | None:
        """p20, p50, p80 or p99."""
        found: float | None = (self.entry["metrics"].get("ttft") or {}).get(quantile)
        return found

    def step_time(self, quantile: str) -> float | None:
        """p20, p50, p80 or p99, pooled over steps; None where they have no times of their own."""
        found: float | None = (self.entry["metrics"].get("step_time") or {}).get(quantile)
        return found

    @property
    def swatch(self) -> Markup:
        """Its marker, for tables."""
        canvas = Canvas(14, 14)
        canvas.marker(7, 7, self.marker, f"{self.class_} dot", 5)
        return Markup('<svg class="swatch" viewBox="0 0 14 14" aria-hidden="true">{}</svg>').format(canvas.content)


def family_of(entry: Mapping[str, Any]) -> str:
    """A method's name, without its cell in a grid."""
    return str((entry["cell"] or {"family": entry["name"]})["family"])


def length_of(part: Mapping[str, Any]) -> float | None:
    """Mean accepted length, pooled, of a method or of one of its categories."""
    found: float | None = part["metrics"].get("mean_accepted_length_pooled")
    return found


def shown(run: RunFiles) -> list[Shown]:
    """The sound and fast first, see `headline.ranked`; colours follow the order of the run."""
    drafting = [m for m in run.methods if (m["baseline"] or m["lossless"]["verdict"] != "baseline") and not is_again(m)]
    coloured = [family_of(m) for m in drafting]
    coloured = list(dict.fromkeys(coloured))
    found = []
    for entry in ranked(run.methods):
        name = entry["name"]
        rows = run.rows(name)
        forwards, seconds = sum(row["forwards"] for row in rows), sum(_decoding(row["phases"]) for row in rows)
        place = coloured.index(family_of(entry)) if family_of(entry) in coloured else -1
        found.append(
            Shown(
                name=name,
                class_=look(place) if place >= 0 else "base",
                marker=place + 1,
                entry=entry,
                tpots=[row["tpot"] for row in rows if row["tpot"] is not None and row["new_tokens"] > 1],
                step_seconds=seconds / forwards if forwards else None,
                ttfts=[row["ttft"] for row in rows if row["ttft"] is not None],
            )
        )
    return found


def look(place: int) -> str:
    """CSS classes of the method at a place: a colour, and from the ninth on lines that are dashed."""
    return f"m{place % COLOURS}" + " again" * (place >= COLOURS)


def groups(methods: Sequence[Shown]) -> list[tuple[str, list[Shown]]]:
    """Methods that are measured against the same baseline, under their sampling settings; the baseline last."""
    found: dict[str, list[Shown]] = {}
    for method in methods:
        alone = method.name if method.entry["sampling"] else ""  # of a killed run nothing is known
        found.setdefault(method.entry["baseline"] or alone, []).append(method)
    return [(_settings(part[-1].entry), part) for _, part in sorted(found.items(), key=_order)]


def _order(group: tuple[str, Sequence[Shown]]) -> tuple[int, int, str]:
    """Cells of a grid by their size."""
    cell = group[1][-1].cell or {"batch": 0, "context": None}
    return cell["batch"], cell["context"] or 0, group[0]


def _settings(entry: Mapping[str, Any]) -> str:
    together, context = entry.get("batch", 1), (entry["cell"] or {}).get("context")
    words = text.sampling(entry["sampling"]) + f", {together} prompts at once" * (together > 1)
    return words + (f", {context} tokens of context" if context else "")


def _decoding(phases: Mapping[str, float | None]) -> float:
    return sum(seconds or 0.0 for phase, seconds in phases.items() if phase != "prefill")
