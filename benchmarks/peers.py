"""specdec beside transformers and vLLM: the same prompts, weights and settings, by turns in one run, one request at a
time.

    taskset -c 1 python benchmarks/peers.py --vllm VENV/bin/python --output benchmarks/results/cpu/peers.json

A `specdec run` (experiments/README.md) of plain decoding, prompt lookup and a draft model on each engine, all on as
many threads; then the tokens per second of ours over theirs. Ratios have 95 % bootstrap intervals over prompts, and
texts are compared with plain decoding's. `measured twice` is how far plain decoding here is from itself. Without --vllm
only transformers runs; --compile compiles our passes, too, for minutes. The last line of stdout is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from specdec.experiments.cli import main as specdec
from specdec.experiments.records import read_lines
from specdec.metrics import speedup

# Chains of the same length everywhere; the sizes of n-grams are the yaml's.
DRAFTERS = {
    "none": "{_target_: specdec.drafters.none.NoDrafter}",
    "ngram": "{_target_: specdec.drafters.ngram.NGram, length: 8, continuations: 1, max_nodes: 9}",
    "draft_model": "{_target_: specdec.drafters.draft_model.DraftModel, model: tiny-draft, tree: chain}",
}
VLLM = "specdec.experiments.engines.vllm_engine.VLLM"
TRANSFORMERS = "specdec.experiments.engines.hf_generate.Transformers"
AT_LEAST = {"none": 1 / 1.1, "ngram": 1.0, "draft_model": 1.0}  # tokens per second over vLLM's


def main() -> None:
    """Run, compare, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", help="a Python that has vLLM")
    parser.add_argument("--target", default="tiny")
    parser.add_argument("--per-category", type=int, default=5, help="prompts")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--folder", type=Path, default=Path("outputs/peers"), help="of the run, which goes on if stopped"
    )
    parser.add_argument("--compile", action="store_true", help="our passes; vLLM's are by themselves")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    engines = {"transformers": f"{{_target_: {TRANSFORMERS}}}"}
    if options.vllm:
        engines["vllm"] = f"{{_target_: {VLLM}, python: {options.vllm}}}"
    given = [f"target.name={options.target}", f"data.per_category={options.per_category}", "drafter=none", "name=peers"]
    given += [f"measure.max_new_tokens={options.tokens}", f"measure.repeats={options.repeats}", "measure.noise=true"]
    given += [
        f"backend.compile={str(options.compile).lower()}",
        f"measure.threads={options.threads}",
        f"hydra.run.dir={options.folder}",
    ]
    for drafter, spec in DRAFTERS.items():
        ours = spec.replace("tree: chain", f"tree: chain, compile: {str(options.compile).lower()}")
        given += [f"+methods.{drafter}={{drafter: {ours}}}"] * (drafter != "none")  # which is the baseline
        given += [f"+methods.{name}_{drafter}={{drafter: {spec}, backend: {b}}}" for name, b in engines.items()]
    if (code := specdec(["run", *given])) not in (0, 3):  # 3: a text differs, which the table says
        sys.exit(code)
    result = compare(options.folder, list(engines))
    show(result)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in result.items() if key != "provenance"}))


def compare(folder: Path, engines: list[str]) -> dict[str, Any]:
    """Ours over theirs, drafter by drafter."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    entries = {entry["name"]: entry for entry in summary["methods"]}
    rows = read_lines(folder / "requests.jsonl")
    pairs = []
    for drafter in DRAFTERS:
        for engine in engines:
            name = f"{engine}_{drafter}"
            ratio = speedup(totals(rows, drafter), totals(rows, name))
            wanted = AT_LEAST[drafter] if engine == "vllm" else None
            pairs.append(
                {
                    "drafter": drafter,
                    "over": engine,
                    "tokens_per_second_ratio": ratio._asdict(),
                    "wanted": wanted,
                    "reached": None if wanted is None else ratio.ratio >= wanted,
                    "tpot_p50_seconds": [entries[n]["metrics"]["tpot"]["p50"] for n in (drafter, name)],
                    "mean_accepted_length": [
                        entries[n]["metrics"]["mean_accepted_length_pooled"] for n in (drafter, name)
                    ],
                    "lossless": entries[name]["lossless"]["verdict"],
                }
            )
    about = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    return {"provenance": about, "pairs": pairs, "measured_twice": entries["none_again"]["speedup"]}


def totals(rows: list[dict[str, Any]], method: str) -> list[tuple[int, float]]:
    """New tokens and seconds of every prompt, all its repeats together, in the order of the run."""
    own = [row for row in rows if row["method"] == method]
    prompts = {row["question_id"]: [r for r in own if r["question_id"] == row["question_id"]] for row in own}
    return [(sum(r["new_tokens"] for r in part), sum(r["seconds"] for r in part)) for part in prompts.values()]


def show(result: dict[str, Any]) -> None:
    """As a table."""
    table = Table(title="tokens per second: specdec over its peers", box=SIMPLE, padding=(0, 1, 0, 0))
    for column in ("drafter", "over", "ratio [95 %]", "wanted", "accepted", "ms a token", "their texts"):
        table.add_column(column.replace(" ", "\n", 1), no_wrap=True)
    for pair in result["pairs"]:
        found, wanted = pair["tokens_per_second_ratio"], pair["wanted"]
        goal = "" if wanted is None else f"{wanted:.2f}: {'reached' if pair['reached'] else 'missed'}"
        table.add_row(
            pair["drafter"],
            pair["over"],
            f"{found['ratio']:.2f}\n[{found['low']:.2f}, {found['high']:.2f}]",
            goal,
            "\n".join(f"{length:.2f}" for length in pair["mean_accepted_length"]),
            "\n".join(f"{1000 * seconds:.2f}" for seconds in pair["tpot_p50_seconds"]),
            pair["lossless"],
        )
    console, twice = Console(), result["measured_twice"]
    console.print(table)
    console.print(f"measured twice: {twice['ratio']:.3f} [{twice['low']:.3f}, {twice['high']:.3f}]", highlight=False)


if __name__ == "__main__":
    main()
