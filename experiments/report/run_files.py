"""What a run left in its directory, made whole: a killed run has no summary, an older one may lack a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdec import metrics
from specdec.experiments.read_back import read_json, read_yaml, remake
from specdec.experiments.records import Row, read_lines
from specdec.experiments.summary import stats_of, without_nan

UNCHECKED: dict[str, Any] = {
    "verdict": "unchecked",
    "rule": None,
    "compared": 0,
    "different": 0,
    "ties": 0,
    "per_thousand_tokens": None,
    "differences": [],
}


@dataclass(frozen=True, slots=True)
class RunFiles:
    """A run.

    Attributes:
        directory: where it is.
        summary: as experiments/README.md says, all keys present.
        requests: rows of requests.jsonl.
        config, provenance: as written; empty where the file is not there.
        config_text: config.yaml as it stands.
    """

    directory: Path
    summary: dict[str, Any]
    requests: list[Row]
    config: dict[str, Any]
    provenance: dict[str, Any]
    config_text: str

    @property
    def methods(self) -> list[dict[str, Any]]:
        """Entries of the summary, in its order."""
        found: list[dict[str, Any]] = self.summary["methods"]
        return found

    def rows(self, method: str) -> list[Row]:
        """The requests of a method."""
        return [row for row in self.requests if row["method"] == method]


def read_run(directory: Path) -> RunFiles:
    """Read what is there.

    Raises:
        ValueError: there is no such directory, or a file is damaged.
    """
    if not directory.is_dir():
        raise ValueError(f"no directory {str(directory)!r}; expected the directory of a run")
    requests = read_lines(directory / "requests.jsonl")
    config_file = directory / "config.yaml"
    config = read_yaml(config_file) if config_file.exists() else {}
    config_text = config_file.read_text(encoding="utf-8") if config else ""
    summary, provenance = (
        read_json(file, remake(directory)) if file.exists() else {}
        for file in (directory / "summary.json", directory / "provenance.json")
    )
    return RunFiles(
        directory, _whole(summary or _summary_of(requests, config)), requests, config, provenance, config_text
    )


def read_finished(directory: Path) -> RunFiles:
    """Read a run that has its summary.

    Raises:
        ValueError: there is none, or a file is damaged.
    """
    if not (directory / "summary.json").is_file():
        begun = (directory / "config.yaml").is_file()
        hint = f"finish it with: specdec run resume={directory}" if begun else "give a run's folder"
        raise ValueError(f"{str(directory)!r} has no summary.json; {hint}")
    return read_run(directory)


def _whole(summary: dict[str, Any]) -> dict[str, Any]:
    empty: dict[str, Any] = {"experiment": "run", "complete": False, "questions": 0, "requests": 0, "notes": []}
    empty |= {"target": {}, "environment": {}, "baseline": None, "methods": [], "definitions": metrics.definitions()}
    entry: dict[str, Any] = {"baseline": None, "drafter": None, "tree": None, "acceptance": None, "backend": None}
    entry |= {"sampling": {}, "requests": 0, "lossless": UNCHECKED, "metrics": {}, "speedup": None, "by_category": {}}
    entry |= {"cell": None}
    whole = empty | {"transformers": None, "prediction": None, "scaling": None, "load": None} | summary
    target = dict.fromkeys(("name", "class", "dtype", "device", "parameters")) | (whole["target"] or {})
    methods = [entry | method for method in whole["methods"]]
    methods = [method | {"lossless": UNCHECKED | method["lossless"]} for method in methods]
    return whole | {"target": target, "methods": methods}


def _summary_of(requests: Sequence[Row], config: dict[str, Any]) -> dict[str, Any]:
    """The counts of a run that was killed; what compares (speed-ups, verdicts) is left out."""
    note = "The run was stopped before its summary was written: nothing here was compared with the baseline."
    categories = sorted({row["category"] for row in requests})
    methods = []
    for name in dict.fromkeys(row["method"] for row in requests):
        rows = [row for row in requests if row["method"] == name]
        parts = {c: [row for row in rows if row["category"] == c] for c in categories}
        methods.append(
            {
                "name": name,
                "requests": len(rows),
                "metrics": without_nan(stats_of(rows).summary()),
                "by_category": {
                    c: {"requests": len(part), "metrics": without_nan(stats_of(part).summary()), "speedup": None}
                    for c, part in parts.items()
                    if part
                },
            }
        )
    return {
        "experiment": str(config.get("name", "run")),
        "questions": len({row["question_id"] for row in requests}),
        "requests": len(requests),
        "notes": [note],
        "target": config.get("target") or {},
        "methods": methods,
    }
