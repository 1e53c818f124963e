"""report.html: what the run's files say, arranged for a reader."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import specdec
from specdec.experiments import machine_noise
from specdec.experiments.leaderboard import is_compared, recommendations
from specdec.experiments.predict import words
from specdec.experiments.records import write_text
from specdec.experiments.report import text
from specdec.experiments.report.acceptance import acceptance_figures
from specdec.experiments.report.examples import examples
from specdec.experiments.report.figures import figures
from specdec.experiments.report.headline import best, headline
from specdec.experiments.report.load import load_page
from specdec.experiments.report.prediction import prediction_figures
from specdec.experiments.report.run_files import RunFiles, read_run
from specdec.experiments.report.scaling import scaling_page
from specdec.experiments.report.shown import groups, length_of, shown
from specdec.experiments.summary import parted
from specdec.metrics import DECODING_PHASES

FOLDER = Path(__file__).parent
FILTERS = "number percent milliseconds large times interval mark lossless_words tie_or_bug short sampling".split()


def write_report(directory: Path, run: RunFiles | None = None) -> Path:
    """Write `report.html` of the run in `directory`; of an unfinished one, what there is.

    Args:
        run: what is there, if it was read before.

    Raises:
        ValueError: there is no such directory, or a file in it is damaged.
    """
    directory = Path(directory)
    file = directory / "report.html"
    write_text(file, render(run or read_run(directory)))
    return file


def render(run: RunFiles) -> str:
    """The page. Everything that comes from a run is escaped; nothing is fetched, and no script runs."""
    environment, css = make_environment(), Markup((FOLDER / "report.css").read_text(encoding="utf-8"))
    if run.summary["scaling"]:
        return scaling_page(run, environment, css, facts(run))
    if run.summary["load"]:
        return load_page(run, environment, css, facts(run))
    methods = shown(run)
    winner = best(run.methods)
    shown_in_full = winner or next((m for m in run.methods if m["baseline"]), None) or next(iter(run.methods), None)
    parts = [part for method in methods for part in method.entry["by_category"].values()]
    return environment.get_template("report.html.j2").render(
        run=run,
        summary=run.summary,
        version=specdec.__version__,
        css=css,
        sentences=headline(run.methods),
        advice=recommendations(run.summary) if is_compared(run.summary) else [],
        methods=methods,
        groups=groups(methods),
        phases=DECODING_PHASES,
        winner=winner["name"] if winner and machine_noise.is_faster(winner["speedup"]) else None,
        figures=[
            *figures(methods, run.summary["environment"].get("machine"), run.summary["target"]["dtype"]),
            *([] if any(method.cell for method in methods) else acceptance_figures(methods)),
            *prediction_figures(run.summary),
        ],
        prediction=run.summary["prediction"],
        machine=run.summary["environment"].get("machine"),
        categories=sorted({c for m in methods for c in m.entry["by_category"]}),
        longest=max([length_of(part) or 1.0 for part in parts], default=1.0),
        example_method=shown_in_full["name"] if shown_in_full else "",
        examples=examples(run, shown_in_full["name"]) if shown_in_full else [],
        facts=facts(run),
        parted=parted(run.summary),
    )


@cache  # with the templates that it has compiled
def make_environment() -> jinja2.Environment:
    """For this folder's templates: escapes what they are given, and knows the filters."""
    loader = jinja2.FileSystemLoader(FOLDER)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {name: getattr(text, name) for name in FILTERS}
    environment.filters["prediction_words"] = words
    environment.filters |= {name: getattr(machine_noise, name) for name in ("is_faster", "noise_words", "warning")}
    return environment


def facts(run: RunFiles) -> list[tuple[str, str]]:
    """Where the numbers come from."""
    origin, environment = run.provenance, run.summary["environment"]
    git, cpu, data = (origin.get(key) or {} for key in ("git", "cpu", "data"))
    commit = f"{git.get('commit')}{_changes(git)}" if git else text.DASH
    governor = f", governor {cpu['governor']}" if cpu.get("governor") else ""
    found = [
        ("Time", origin.get("time")),
        ("Command", " ".join(map(str, origin.get("argv") or []))),
        ("Commit", commit),
        ("Versions", ", ".join(f"{k} {v}" for k, v in (origin.get("versions") or {}).items())),
        ("System", origin.get("system")),
        ("CPU", f"{cpu.get('model')}, {cpu.get('cores')} cores{governor}" if cpu else None),
        ("GPU", ", ".join(origin.get("gpu") or []) or "none"),
        ("Clocks at the start", _clocks(origin.get("clocks") or {})),
        ("Threads", environment.get("threads") or origin.get("threads")),
        ("Memory bandwidth, measured", text.large(environment.get("peak_bandwidth"), "B/s")),
        (
            "Prompts",
            f"{data.get('name')}, {data.get('count')} questions chosen, sha256 {data.get('sha256')}" if data else None,
        ),
        ("Warm-up, not counted", ", ".join(f"{k} {v:.2f} s" for k, v in (environment.get("warm_up") or {}).items())),
        ("Starts", len(origin.get("earlier") or []) + 1 if origin else None),
    ]
    return [(name, str(value) if value not in (None, "") else text.DASH) for name, value in found]


def _changes(git: Mapping[str, Any]) -> str:
    if not git.get("dirty"):
        return ""
    if not git.get("diff_sha256"):
        return " with uncommitted changes"
    return f" with uncommitted changes ({git['changed']} files, sha256 of the difference {git['diff_sha256'][:12]})"


def _clocks(found: Mapping[str, Any]) -> str:
    cpu, parts = found.get("cpu"), []
    if cpu:
        parts.append(f"CPU {cpu['now'][0]} to {cpu['now'][1]} of {cpu['min']} to {cpu['max']} MHz")
    for gpu in found.get("gpu") or []:
        told = [f"{key} {value:g}" for key, value in gpu.items() if isinstance(value, int | float) and key != "index"]
        parts.append(f"GPU {', '.join(told)}")
    return "; ".join(parts)
