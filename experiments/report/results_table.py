"""results.parquet: several runs in one table, a row per run, method and category."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from specdec.experiments.report import text
from specdec.experiments.report.run_files import RunFiles
from specdec.metrics import DECODING_PHASES

PARTS = ("drafter", "tree", "acceptance", "sampling")  # of a method, whole in its entry
PARTS_OF_STEPS = ("verify_step", "draft_step")
STEP = ("bytes", "flops", "seconds", "intensity", "bandwidth_share", "flops_share")
COLUMNS: dict[str, tuple[Any, str]] = {
    "run": (pl.String, "the folder, as it was given"),
    "experiment": (pl.String, "its name"),
    "time": (pl.String, "when it began, ISO 8601, UTC"),
    "complete": (pl.Boolean, "false: a time limit left requests out"),
    "target": (pl.String, "name"),
    "target_dtype": (pl.String, ""),
    "target_device": (pl.String, ""),
    "target_parameters": (pl.Int64, ""),
    "method": (pl.String, "name"),
    "family": (pl.String, "its name without the cell of a grid; null without a grid"),
    "batch": (pl.Int64, "questions served together"),
    "context": (pl.Int64, "of the cell: tokens of every prompt; null for their own"),
    "nodes": (pl.Int64, "of the cell: most nodes of a tree; null for the method's own setting"),
    "baseline": (pl.String, "the method it is measured against; null for a baseline"),
    "drafter": (pl.String, "class and settings; so tree, acceptance"),
    "tree": (pl.String, ""),
    "acceptance": (pl.String, ""),
    "backend": (pl.String, "another engine's name; null for specdec itself"),
    "temperature": (pl.Float64, ""),
    "lossless": (pl.String, "verdict over all its requests"),
    "category": (pl.String, "null: over all"),
    "requests": (pl.Int64, ""),
    "speedup": (pl.Float64, "tokens per second over the baseline's; null for a baseline"),
    "speedup_low": (pl.Float64, "of the 95 % interval; null for a single prompt"),
    "speedup_high": (pl.Float64, ""),
    "speedup_label": (pl.String, "words that must stand beside it, or empty"),
    "speedup_noise": (pl.Float64, "the machine's, a factor; null if not measured"),
    "steps": (pl.Int64, ""),
    "new_tokens": (pl.Int64, ""),
    "mean_accepted_length_pooled": (pl.Float64, ""),
    "mean_accepted_length_per_request": (pl.Float64, ""),
    "block_efficiency": (pl.Float64, ""),
    "draft_acceptance_rate": (pl.Float64, ""),
    "node_acceptance_rate": (pl.Float64, ""),
    "acceptance_by_depth_conditional": (pl.List(pl.Float64), "from depth 1"),
    "acceptance_by_depth_unconditional": (pl.List(pl.Float64), "from depth 1"),
    **{f"{name}_{q}": (pl.Float64, "seconds") for name in ("ttft", "tpot") for q in ("p20", "p50", "p80", "p99")},
    "tokens_per_second": (pl.Float64, ""),
    **{f"phase_share_{p}": (pl.Float64, "") for p in DECODING_PHASES},
    "prefill_share": (pl.Float64, ""),
    **{f"{part}_{name}": (pl.Float64, "") for part in PARTS_OF_STEPS for name in STEP},
    "bytes_moved": (pl.Float64, ""),
    "mbu": (pl.Float64, ""),
    "model_flops": (pl.Float64, ""),
    "divergence_rate": (pl.Float64, ""),
    "peak_memory": (pl.Int64, "bytes"),
    "commit": (pl.String, "of specdec; null outside its repository"),
    "dirty": (pl.Boolean, "with uncommitted changes"),
    **dict.fromkeys(("specdec", "python", "torch", "transformers"), (pl.String, "version")),
    "system": (pl.String, ""),
    "cpu": (pl.String, ""),
    "cores": (pl.Int64, ""),
    "gpu": (pl.String, "names, joined by commas; empty without one"),
    "threads": (pl.Int64, "of torch"),
    "data": (pl.String, "name of the prompts' file"),
    "data_sha256": (pl.String, ""),
}
CONFIG = "config."  # before a setting's name, which is a column where two runs differ in it


def frame_of(run: RunFiles) -> pl.DataFrame:
    """A run's rows, without its settings.

    Raises:
        ValueError: its files are no run's.
    """
    schema = {name: dtype for name, (dtype, _) in COLUMNS.items()}
    try:
        rows = [row for entry in run.methods for row in _rows(run, entry)]
        for entry in run.methods:
            settings_of(run, entry)
        return pl.DataFrame(rows, schema=schema)
    except (KeyError, TypeError, AttributeError, pl.exceptions.PolarsError) as error:
        told = " ".join(str(error).split())
        raise ValueError(f"{run.directory}: its files are not a run's ({type(error).__name__}: {told})") from None


def _rows(run: RunFiles, entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    summary, origin = run.summary, run.provenance
    git, cpu, data, versions = (origin.get(key) or {} for key in ("git", "cpu", "data", "versions"))
    whole = {
        "run": str(run.directory),
        "experiment": str(summary["experiment"]),
        "time": origin.get("time"),
        "complete": summary["complete"],
        "target": summary["target"]["name"],
        **{f"target_{key}": summary["target"][key] for key in ("dtype", "device", "parameters")},
        "method": entry["name"],
        "batch": entry.get("batch"),
        **(entry["cell"] or {}),
        "baseline": entry["baseline"],
        **{kind: text.short(entry[kind]) or None for kind in ("drafter", "tree", "acceptance")},
        "backend": entry["backend"],
        "temperature": entry["sampling"].get("temperature"),
        "lossless": entry["lossless"]["verdict"],
        "commit": git.get("commit"),
        "dirty": git.get("dirty"),
        **{name: versions.get(name) for name in ("specdec", "python", "torch", "transformers")},
        "system": origin.get("system"),
        "cpu": cpu.get("model"),
        "cores": cpu.get("cores"),
        "gpu": ", ".join(origin["gpu"]) if "gpu" in origin else None,
        "threads": origin.get("threads"),
        "data": data.get("name"),
        "data_sha256": data.get("sha256"),
    }
    for category, part in [(None, entry), *sorted(entry["by_category"].items())]:
        speedup = part["speedup"] or {}
        found = {"speedup": speedup.get("ratio")}
        found |= {f"speedup_{key}": speedup.get(key) for key in ("low", "high", "label", "noise")}
        for name, value in part["metrics"].items():
            found |= {f"{name}_{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {name: value}
        row = {**whole, "category": category, "requests": part["requests"], **found}
        yield {name: row.get(name) for name in COLUMNS}


def results_table(runs: Sequence[RunFiles]) -> pl.DataFrame:
    """See COLUMNS; then, sorted by name, the settings that two runs differ in: whole numbers, numbers, truth values or
    texts, JSON where a setting is or was more.

    Raises:
        ValueError: a run's files are no run's.
    """
    frame = pl.concat([frame_of(run) for run in runs])
    settings = [flat for run in runs for entry in run.methods for flat in [settings_of(run, entry)] * _count(entry)]
    columns = [_series(CONFIG + name, [flat.get(name) for flat in settings]) for name in differing(runs)]
    return frame.with_columns(columns)


def _count(entry: Mapping[str, Any]) -> int:
    return 1 + len(entry["by_category"])


def differing(runs: Sequence[RunFiles]) -> list[str]:
    """Settings in which two runs differ; those of a method only if both runs have one of its name."""
    seen: dict[str, dict[str, Any]] = {}
    found: set[str] = set()
    for run in runs:
        for entry in run.methods:
            flat = settings_of(run, entry)
            known = seen.setdefault(entry["name"], flat)
            found |= {name for name in {*known, *flat} if known.get(name) != flat.get(name)}
    own = {name for run in runs for name in _flat(_shared(run))}
    for name in own:
        if len({json.dumps(_flat(_shared(run)).get(name)) for run in runs}) > 1:
            found.add(name)
    return sorted(found)


def settings_of(run: RunFiles, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting of the run, and of one method, by its full name."""
    return _flat({**_shared(run), **{kind: entry[kind] for kind in PARTS}})


def _shared(run: RunFiles) -> dict[str, Any]:
    """Settings that are not of a method: a method's entry holds those, filled in."""
    return {key: value for key, value in run.config.items() if key not in (*PARTS, "methods", "name")}


def _flat(value: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{name}{key}.") if isinstance(inner, Mapping) else {f"{name}{key}": inner}
    return found


def _series(name: str, values: Sequence[Any]) -> pl.Series:
    kinds = {type(value) for value in values if value is not None}
    for allowed, dtype in (({bool}, pl.Boolean), ({int}, pl.Int64), ({int, float}, pl.Float64), ({str}, pl.String)):
        if kinds <= allowed:
            return pl.Series(name, values, dtype=dtype)
    return pl.Series(name, [v if v is None or isinstance(v, str) else json.dumps(v) for v in values], dtype=pl.String)
