"""What a second worker is worth to a sweep: the wall time of twelve cells on one process and on two, by turns.

    python benchmarks/sweep.py --output benchmarks/results/cpu/sweep.json

Both are the same command, `specdec run -m hydra/launcher=cores`, from its start to its report, with one thread of torch
a cell. A ratio counts only if every cell of both sweeps was done with the same texts. It needs two free cores and
hydra-joblib-launcher, and takes some minutes a repeat. The last line of stdout is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from specdec.experiments import provenance
from specdec.experiments.records import read_lines, write_text

GOAL = 1.6  # times one worker
CELLS = ["drafter=ngram", "drafter.length=2,3,4,5", "drafter.max_ngram=1,2,3"]


def run_sweep(folder: Path, workers: int, questions: int, tokens: int) -> dict[str, Any]:
    """One sweep; its wall time, its cells' own, and its texts.

    Raises:
        RuntimeError: a cell was not done.
    """
    size = [f"data.limit={questions}", f"measure.max_new_tokens={tokens}", "measure.threads=1", "tracker=noop"]
    launcher = ["hydra/launcher=cores", f"hydra.launcher.n_jobs={workers}", f"hydra.sweep.dir={folder}"]
    command = [sys.executable, "-m", "specdec.experiments.cli", "run", "-m", *CELLS, *size, *launcher]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"the sweep on {workers} workers ended with {done.returncode}: {done.stderr[-2000:]}")
    cells = [row["cell"] for row in json.loads((folder / "sweep.json").read_text(encoding="utf-8"))]
    rows = {cell: read_lines(folder / cell / "requests.jsonl") for cell in cells}
    return {
        "workers": workers,
        "seconds": seconds,
        "decoding_seconds": {cell: sum(row["seconds"] for row in found) for cell, found in rows.items()},
        "texts": {cell: [row["token_ids"] for row in found] for cell, found in rows.items()},
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def main() -> None:
    """Measure, and write the result after every pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--repeats", type=int, default=3, help="pairs of sweeps")
    parser.add_argument("--questions", type=int, default=12, help="of every cell")
    parser.add_argument("--tokens", type=int, default=64, help="new ones of every answer")
    given = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        print("warning: this process may use one core only: two workers cannot be faster", file=sys.stderr)
    about = provenance.collect(sys.argv, {"cells": CELLS, "goal": GOAL, **vars(given), "output": None}, {})
    pairs: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    for repeat in range(given.repeats):
        order = (1, 2) if repeat % 2 == 0 else (2, 1)
        with tempfile.TemporaryDirectory() as folder:
            size = (given.questions, given.tokens)
            found = {workers: run_sweep(Path(folder, f"workers_{workers}"), workers, *size) for workers in order}
        same = found[1].pop("texts") == found[2].pop("texts")
        ratio = found[1]["seconds"] / found[2]["seconds"]
        pairs.append({"one": found[1], "two": found[2], "ratio": ratio, "same_texts": same, "load": os.getloadavg()})
        print(f"{repeat + 1}: {found[1]['seconds']:.1f} s, {found[2]['seconds']:.1f} s, {ratio:.2f} times", flush=True)
        ratios = spread([pair["ratio"] for pair in pairs])
        result = {
            "provenance": about,
            "cells": len(found[1]["decoding_seconds"]),
            "pairs": pairs,
            "ratio": ratios,
            "seconds": {name: spread([pair[name]["seconds"] for pair in pairs]) for name in ("one", "two")},
            "goal": GOAL,
            "reached": bool(ratios["median"] >= GOAL and all(pair["same_texts"] for pair in pairs)),
        }
        if given.output:
            given.output.parent.mkdir(parents=True, exist_ok=True)
            write_text(given.output, json.dumps(result, indent=1) + "\n")
    short = {key: value for key, value in result.items() if key not in ("provenance", "pairs")}
    print(json.dumps(short))


if __name__ == "__main__":
    main()
