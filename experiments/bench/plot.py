"""Roofline of a GPU's result: what every method reaches against the copy's bandwidth and a large product's rate; and
a machine's cost curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def roofline(result: dict[str, Any], file: Path) -> int:
    """Write the figure; the suffix says PNG or SVG. Returns the number of points.

    Raises:
        ValueError: the result has no times, as on a CPU.
    """
    machine = result["machine"]
    timed = [entry for entry in result["cells"].values() if "seconds" in entry]
    if "matmul_rate" not in machine or not timed:
        raise ValueError("a roofline needs times, which only a GPU's result has")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    intensities = [entry["flops"] / entry["bytes"] for entry in timed]
    ends = [min(intensities) / 2, max(*intensities, machine["matmul_rate"] / machine["copy_bandwidth"]) * 2]
    corner = machine["matmul_rate"] / machine["copy_bandwidth"]
    roof = [ends[0], corner, ends[1]]
    axes.plot(roof, [min(x * machine["copy_bandwidth"], machine["matmul_rate"]) / 1e12 for x in roof], "k-", lw=1)
    points = 0
    for i, name in enumerate(dict.fromkeys(name for entry in timed for name in entry["seconds"])):
        here = [
            (e["flops"] / e["bytes"], e["flops"] / e["seconds"][name][1] / 1e12) for e in timed if name in e["seconds"]
        ]
        axes.plot(*zip(*here, strict=True), "oxs^v+D*"[i % 8], label=name, alpha=0.7)
        points += len(here)
    axes.set(
        xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="TFLOP/s",
        title=f"tree attention, {', '.join(result['provenance']['gpu'])}",
    )  # fmt: skip
    axes.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    return points


def cost_curve(measured: dict[str, Any], file: Path) -> None:
    """Write the figure of a result of `specdec bench curve`.

    On the dashed line nodes are free, on the dotted one a tree costs as much as decoding its nodes one by one.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    nodes, cost = measured["nodes"], measured["cost"]
    spread = [[c - low for c, low in zip(cost, measured["p20"], strict=True)]]
    spread.append([high - c for c, high in zip(cost, measured["p80"], strict=True)])
    axes.errorbar(nodes, cost, yerr=spread, fmt="o-", capsize=3)
    axes.axhline(1, color="grey", linewidth=0.8, linestyle="--")
    most = max(measured["p80"])
    axes.plot([1, most], [1, most], color="grey", linewidth=0.8, linestyle=":")
    what = f"{measured['target']}, {measured['dtype']}, {measured['device']}, batch {measured['batch']}"
    axes.set(xlabel="nodes", ylabel="cost of a step over plain decoding", title=what)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
