"""Several runs, perhaps of several machines, side by side: results.parquet and results.html."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

import specdec
from specdec.experiments.records import write_bytes, write_text
from specdec.experiments.report.page import FOLDER, make_environment, write_report
from specdec.experiments.report.results_table import CONFIG, differing, frame_of, results_table, settings_of
from specdec.experiments.report.run_files import RunFiles, read_finished
from specdec.experiments.sweep import is_sweep

HTML, PARQUET = "results.html", "results.parquet"


def write_joint(folders: Sequence[Path], into: Path | None = None) -> tuple[list[Path], list[str]]:
    """Write every run's own report, and both files of all of them.

    Args:
        folders: of runs or sweeps; one that is given twice counts once.
        into: where the joint files go; None for the folder that has all of them inside.

    Returns:
        What was written, and what was not and why.

    Raises:
        ValueError: there is no finished run among them.
    """
    runs: list[RunFiles] = []
    written: list[Path] = []
    problems: list[str] = []
    for folder in {inner.resolve(): inner for given in folders for inner in _inside(given)}.values():
        try:
            run = read_finished(folder)
            frame_of(run)
        except (ValueError, OSError, TypeError) as error:  # TypeError: summary.json holds no mapping
            problems.append(f"left out: {error}")
            continue
        runs.append(run)
        try:
            written.append(write_report(folder, run))
        except (OSError, TypeError, jinja2.TemplateError) as error:  # a folder of others; a run of an earlier version
            problems.append(f"the report in {folder} was left as it is: {error}")
    if not runs:
        raise ValueError(f"there is no finished run among them; {'; '.join(problems)}")
    into = into or Path(os.path.commonpath([folder.resolve() for folder in folders]))
    into.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    results_table(runs).write_parquet(buffer)
    write_bytes(into / PARQUET, buffer.getvalue())
    write_text(into / HTML, render(runs, problems))
    return [*written, into / PARQUET, into / HTML], problems


def _inside(folder: Path) -> list[Path]:
    """The jobs' folders of a sweep, in their order; else the folder itself."""
    if not is_sweep(folder):
        return [folder]
    jobs = [inner for inner in folder.iterdir() if (inner / "config.yaml").is_file()]
    return sorted(jobs, key=lambda job: (len(job.name), job.name)) or [folder]


def render(runs: Sequence[RunFiles], problems: Sequence[str]) -> str:
    """The page: what the runs are, what they differ in, and each method's figures in all of them, by category."""
    methods = list(dict.fromkeys(entry["name"] for run in runs for entry in run.methods))
    categories = sorted({c for run in runs for entry in run.methods for c in entry["by_category"]})
    return (
        make_environment()
        .get_template("joint.html.j2")
        .render(
            version=specdec.__version__,
            css=Markup((FOLDER / "report.css").read_text(encoding="utf-8")),
            runs=runs,
            problems=problems,
            tables=[(category, _table(runs, methods, category)) for category in (None, *categories)],
            settings=_settings(runs),
            parquet=PARQUET,
            prefix=CONFIG,
        )
    )


def _table(
    runs: Sequence[RunFiles], methods: Sequence[str], category: str | None
) -> list[tuple[str, list[dict[str, object] | None]]]:
    """Of each method what each run has of it in a category, or None."""
    table = []
    for method in methods:
        entries = [next((e for e in run.methods if e["name"] == method), None) for run in runs]
        parts = [e and (e if category is None else e["by_category"].get(category)) for e in entries]
        cells = [p and e and {**p, "lossless": e["lossless"]} for p, e in zip(parts, entries, strict=True)]
        if any(cells):
            table.append((method, cells))
    return table


def _settings(runs: Sequence[RunFiles]) -> list[tuple[str, list[str]]]:
    """Settings that differ, and their values in each run: more than one where its methods differ."""
    found = []
    for name in differing(runs):
        values = [dict.fromkeys(str(settings_of(run, e).get(name)) for e in run.methods) for run in runs]
        found.append((name, [", ".join(v for v in value if v != "None") for value in values]))
    return found
