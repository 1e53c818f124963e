"""What a run under load shows in the terminal, and gives to its tracker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from specdec.experiments.load.settings import CLOSED

Json = Mapping[str, Any]
COLUMNS = ["loop", "level", "speculation", "batching", "throughput", "over_off", "ttft_p50", "ttft_p99", "tpot_p50"]
COLUMNS += ["tpot_p99", "goodput", "mean_accepted_length", "slot_use", "pool_mean", "lossless"]


def table(summary: Json) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows, one a cell."""
    rows = []
    for cell in summary["load"]["cells"]:
        found, over = cell["metrics"], cell["over_off"]
        times = [found[name][part] for name in ("ttft", "tpot") for part in ("p50", "p99")]
        rest = [found["goodput"], found["mean_accepted_length"], found["slot_use"], found["pool_use"]["mean"]]
        what = [cell["loop"], cell["level"], cell["speculation"], cell["batching"]]
        rows.append([*what, found["throughput"], over and over["ratio"], *times, *rest, cell["lossless"]["verdict"]])
    return COLUMNS, rows


def flat(summary: Json) -> dict[str, Any]:
    """Every number of every cell as `cell/metric`, parts as `cell/metric/part`."""
    found: dict[str, Any] = {}
    for cell in summary["load"]["cells"]:
        ratios = {name: cell[name] for name in ("over_off", "over_static", "over_better") if cell[name]}
        for name, value in {**cell["metrics"], **ratios}.items():
            parts = {f"/{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {"": value}
            found |= {f"{cell['name']}/{name}{part}": v for part, v in parts.items() if isinstance(v, int | float)}
        found[f"{cell['name']}/lossless"] = cell["lossless"]["verdict"]
    return found


def show_load(console: Console, summary: Json) -> None:
    """All cells, in 80 columns."""
    target = summary["target"]
    made = Table(
        title=f"{summary['experiment']}: {target['name']}, {target['dtype']}", box=SIMPLE, padding=(0, 1, 0, 0)
    )
    made.show_edge = False
    for name in ("load", "speculation", "tokens/s", "over\noff", "TTFT ms\np50/p99", "TPOT ms\np50/p99", "good/s"):
        made.add_column(name, justify="left" if name in ("load", "speculation") else "right", no_wrap=True)
    last: object = None
    for cell in summary["load"]["cells"]:
        found = cell["metrics"]
        here = cell["loop"], cell["level"]
        level = f"{cell['level']:g} at once" if cell["loop"] == CLOSED else f"{cell['level']:g} × cap."
        times = ["/".join(_ms(found[name][part]) for part in ("p50", "p99")) for name in ("ttft", "tpot")]
        made.add_row(
            level if here != last else "",
            f"{cell['speculation']}{', static' if cell['batching'] == 'static' else ''}",
            f"{found['throughput']:.0f}",
            f"{cell['over_off']['ratio']:.2f}" if cell["over_off"] else "",
            *times,
            f"{found['goodput']:.2f}",
            style="red" if cell["lossless"]["verdict"] in ("no", "not lossless") else "",
        )
        last = here
    console.print(made)
    told = "; ".join(f"{method['name']} {method['lossless']['verdict']}" for method in summary["methods"])
    console.print(f"Lossless, against plain decoding alone: {told}.", highlight=False, markup=False)
    for sentence in sentences(summary):
        console.print(sentence, highlight=False, markup=False)


def sentences(summary: Json) -> list[str]:
    """What may be said of the whole."""
    cells = [cell for cell in summary["load"]["cells"] if cell["loop"] == CLOSED]
    said = []
    found = [cell for cell in cells if cell["over_static"]]
    if found:
        best = max(found, key=lambda cell: cell["over_static"]["ratio"])
        said.append(
            f"In flight against static batching, closed loop: at most {_ratio(best['over_static'])} the tokens per "
            f"second ({best['level']:g} at once, speculation {best['speculation']})."
        )
    on = [cell for cell in cells if cell["speculation"] == "on" and cell["over_off"]]
    if on:
        best, worst = (pick(on, key=lambda cell: cell["over_off"]["ratio"]) for pick in (max, min))
        said.append(f"Speculation on against off: {_at(best, 'over_off')} at best, {_at(worst, 'over_off')} at worst.")
    adaptive = [cell for cell in cells if cell["over_better"]]
    if adaptive:
        worst = min(adaptive, key=lambda cell: cell["over_better"]["ratio"])
        other = worst["over_better"]["other"]
        said.append(
            f"Adaptive against the better of off and on: {_at(worst, 'over_better')} at worst, where the better one is "
            f"{other}."
        )
    return said


def _at(cell: Json, name: str) -> str:
    static = ", static" if cell["batching"] == "static" else ""
    return f"{_ratio(cell[name])} ({cell['level']:g} at once{static})"


def _ratio(over: Json) -> str:
    interval = "" if over["low"] is None else f" [{over['low']:.2f}, {over['high']:.2f}]"
    return f"{over['ratio']:.2f}×{interval}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{1000 * value:.0f}" if value >= 0.1 else f"{1000 * value:.1f}"
