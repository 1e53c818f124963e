"""Figures for trackers: speed-ups with their intervals, and acceptance by depth; of a run under load its levels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def draw(summary: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Write PNG files; returns them by name."""
    folder.mkdir(exist_ok=True)
    files = {}
    for name, make in (("speedup", _speedups), ("acceptance_by_depth", _depths)):
        figure = make(summary)
        files[name] = folder / f"{name}.png"
        figure.savefig(files[name], dpi=120)
    return files


def draw_load(summary: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Tokens per second and goodput of a run under load, by the level of every loop, as PNG files by name."""
    folder.mkdir(exist_ok=True)
    files = {}
    for loop in dict.fromkeys(cell["loop"] for cell in summary["load"]["cells"]):
        cells = [cell for cell in summary["load"]["cells"] if cell["loop"] == loop]
        figure = Figure(figsize=(9, 3.5), layout="constrained")
        for axes, metric in zip(figure.subplots(1, 2), ("throughput", "goodput"), strict=True):
            for way in dict.fromkeys((cell["speculation"], cell["batching"]) for cell in cells):
                own = [cell for cell in cells if (cell["speculation"], cell["batching"]) == way]
                values = [cell["metrics"][metric] for cell in own]
                axes.plot([cell["level"] for cell in own], values, "o-", label=", ".join(way))
            axes.set_xscale("log", base=2)
            axes.set_xlabel(f"level of the {loop} loop")
            axes.set_ylabel(metric)
        figure.axes[0].legend(fontsize="small")
        files[f"load_{loop}"] = folder / f"load_{loop}.png"
        figure.savefig(files[f"load_{loop}"], dpi=120)
    return files


def _speedups(summary: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    shown = [e for e in summary["methods"] if e["speedup"] and e["speedup"]["ratio"] is not None]
    for place, entry in enumerate(shown):
        found = entry["speedup"]
        spread = [[found["ratio"] - found["low"]], [found["high"] - found["ratio"]]] if found["low"] else None
        axes.errorbar([found["ratio"]], [place], xerr=spread, fmt="o", capsize=4)
    names = [e["name"] + (f" ({e['speedup']['label']})" if e["speedup"]["label"] else "") for e in shown]
    axes.set_yticks(range(len(shown)), names)
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xlabel("tokens per second over the baseline's, 95 % interval")
    return figure


def _depths(summary: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    for entry in summary["methods"]:
        rates = entry["metrics"]["acceptance_by_depth"]["unconditional"]
        if rates:
            axes.plot(
                range(1, len(rates) + 1), [float("nan") if r is None else r for r in rates], "o-", label=entry["name"]
            )
    axes.set_xlabel("depth")
    axes.set_ylabel("share of steps that accepted it")
    axes.set_ylim(0, 1)
    if axes.lines:
        axes.legend()
    return figure
