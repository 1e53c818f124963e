"""Keep of a run's folder what is worth committing: where it comes from, and the figures of every method, or of every
cell of a load.

specdec run experiment=compare hydra.run.dir=outputs/drafters
python benchmarks/keep.py outputs/drafters benchmarks/results/cpu/drafters.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def keep(folder: Path) -> dict[str, Any]:
    """The figures of a finished run.

    Raises:
        SystemExit: it has not ended.
    """
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    if not summary["complete"]:
        raise SystemExit(f"{folder} is not complete; go on with: specdec run resume={folder}")
    about = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    here = "hydra.run.dir="  # a folder of this machine
    about["argv"] = [word for word in about["argv"] if not word.startswith(here)]
    kept = {"provenance": about, "questions": summary["questions"]}
    if summary["load"] is not None:
        return kept | {"load": _load(summary["load"])}
    return kept | {"methods": [_figures(method) for method in summary["methods"]]}


def _figures(method: dict[str, Any]) -> dict[str, Any]:
    parts = {name: _accepted(part) for name, part in method["by_category"].items()}
    return {
        "name": method["name"],
        "lossless": method["lossless"]["verdict"],
        **_accepted(method),
        "phase_share": method["metrics"]["phase_share"],
        "by_category": parts,
    }


def _load(load: dict[str, Any]) -> dict[str, Any]:
    names = ("name", "level", "speculation", "batching", "over_off", "over_static", "over_better")
    cells = [
        {name: cell[name] for name in names}
        | {"throughput": cell["metrics"]["throughput"], "lossless": cell["lossless"]["verdict"]}
        for cell in load["cells"]
    ]
    return {"rounds": load["rounds"], "output_tokens": load["output_tokens"], "cells": cells}


def _accepted(part: dict[str, Any]) -> dict[str, Any]:
    return {
        "mean_accepted_length_pooled": part["metrics"]["mean_accepted_length_pooled"],
        "speedup": part["speedup"],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a run that has ended")
    parser.add_argument("output", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    arguments.output.write_text(json.dumps(keep(arguments.folder), indent=1) + "\n", encoding="utf-8")
