"""`specdec run experiment=scaling`: a run without prompts and methods, in the usual folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from specdec import registry
from specdec.experiments import display, machine, provenance
from specdec.experiments.folder_lock import only_writer
from specdec.experiments.records import write_text
from specdec.experiments.report import write_report
from specdec.experiments.run_folder import begin, look_into
from specdec.experiments.scaling.measure import AXES, Settings, measure_scaling
from specdec.experiments.validation import check_models, refuse_missing

Json = dict[str, Any]
OTHERS = ("drafter", "tree", "methods", "only", "predict", "stream", "trace", "transformers_batch", "grid", "machine")


def run_scaling(raw: Mapping[str, Any], directory: Path, overrides: Sequence[str], console: Console) -> Json:
    """Time steps, fit laws, report; returns the summary. See `run`.

    Raises:
        ValueError: something is wrong with the configuration or the model, or another process writes in `directory`.
    """
    settings, allowed = Settings.parse(raw["scaling"]), tuple(raw.get("allow_targets") or ())
    if given := [name for name in OTHERS if raw.get(name)]:
        raise ValueError(f"scaling times steps without drafts and prompts: take {', '.join(given)} out")
    if raw.get("backend") != registry.read_yaml("backend", "auto"):
        raise ValueError("scaling times the attention that backend=auto chooses: take backend out")
    refuse_missing(raw["target"], "target")
    registry.check(raw["target"], allowed, "target")
    check_models({"target": raw["target"]})
    if (earlier := look_into(directory, raw)) is not None:
        console.print(f"{directory} is finished already: nothing to run")
        return earlier
    if threads := (raw.get("measure") or {}).get("threads"):
        torch.set_num_threads(threads)
    transformers_logging.disable_progress_bar()
    console.print(f"Loading target [bold]{raw['target']['name']}[/]", highlight=False)
    model: PreTrainedModel = registry.instantiate(raw["target"], allowed, "target")
    longest = max((*settings.contexts, settings.at["context"])) + max((*settings.nodes, settings.at["nodes"]))
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None) or longest
    if longest > most:
        raise ValueError(
            f"scaling: the longest context with its tree has {longest} tokens; the target's limit is {most}"
        )
    directory.mkdir(parents=True, exist_ok=True)
    with only_writer(directory):
        begin(directory, raw, overrides)
        provenance.write(directory / "provenance.json", provenance.collect(provenance.command_line(), raw, {}))
        axes = sum(bool(getattr(settings, axis)) for axis in AXES)
        with display.Bar(console, axes, "Timing") as bar:
            found = measure_scaling(settings, model, bar.advance)
        summary = _summary(raw, model, settings, found)
        write_text(directory / "summary.json", json.dumps(summary, indent=1) + "\n")
        show_scaling(console, summary)
        console.print(f"Report: {write_report(directory)}", highlight=False, soft_wrap=True)
    return summary


def _summary(raw: Mapping[str, Any], model: PreTrainedModel, settings: Settings, found: Json) -> Json:
    return {
        "experiment": str(raw["name"]),
        "complete": True,
        "questions": 0,
        "requests": 0,
        "notes": [],
        "target": {
            "name": raw["target"]["name"],
            "class": type(model).__name__,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        "environment": {
            "peak_bandwidth": machine.peak_bandwidth(model.device),
            "threads": torch.get_num_threads(),
        },
        "baseline": None,
        "methods": [],
        "scaling": {"at": settings.at | {"vocabulary": model.config.get_text_config().vocab_size}, "axes": found},
        "definitions": {},
    }


def show_scaling(console: Console, summary: Json) -> None:
    """The laws, in 80 columns."""
    table = Table(
        title=f"A step's cost: {summary['target']['name']}", box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False
    )
    for name in ("axis", "from to", "times", "a power law", "one above a fixed cost"):
        table.add_column(name, justify="left" if name == "axis" else "right")
    for name, axis in summary["scaling"]["axes"].items():
        first, last = (axis["points"][i]["value"] for i in (0, -1))
        power, fixed = axis["power"], axis["fixed"]
        share = fixed["fixed"] / axis["points"][-1]["seconds"]["p50"]
        laws = [
            f"{_exponent(power)}\nR2 {power['r2']:.3f}",
            f"{_exponent(fixed)}\n{share:.0%} fixed, R2 {fixed['r2']:.3f}",
        ]
        table.add_row(name, f"{first} to {last}", f"{axis['growth']:.2f}", *laws)
    console.print(table)
    console.print(
        "times: the last point's cost over the first's. Laws: exponents with 95 % intervals over rounds; the fixed "
        "cost's share is of the last point, R2 of logarithms.",
        style="dim",
    )


def _exponent(law: Mapping[str, float]) -> str:
    return f"{law['exponent']:.2f} [{law['low']:.2f}, {law['high']:.2f}]"
