"""What exact=True costs: steps and prefill, exact over normal, and what speculation still gains.

    python benchmarks/exact.py --output benchmarks/results/cpu/exact.json

One prompt at a time, every method in both modes by turns in one process; on a CPU in the process's own time. Ratios are
medians over prompts of one prompt's ratio, with quartiles. Texts are compared with plain decoding of the same mode: in
exact mode all must be equal, or there is no result. The last line of stdout is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from specdec import DecodingStats
from specdec.engine import Engine
from specdec.experiments import provenance
from specdec.experiments.data import load_questions
from specdec.loading import load_model, load_tokenizer
from specdec.request import Request

MODES = {"normal": False, "exact": True}


@dataclass(frozen=True, slots=True)
class Timed:
    """One prompt: the new tokens, the steps after the prefill, and the seconds of both."""

    tokens: list[int]
    steps: int
    prefill: float
    decode: float


def clock(device: torch.device) -> float:
    """Seconds: of the process on a CPU, of the wall on a GPU that has done its work."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def decode(engine: Engine, prompt: list[int], tokens: int) -> Timed:
    """Greedily, without an end."""
    device, text, steps = engine.target.device, [], 0
    started = clock(device)
    run = engine.run([Request(prompt, tokens)], DecodingStats())
    text += next(run)[1]
    begun = clock(device)
    for _, new in run:
        text += new
        steps += 1
    return Timed(text, steps, begun - started, clock(device) - begun)


def quartiles(values: list[float]) -> list[float]:
    """The 25th, 50th and 75th percentile."""
    return [round(x, 3) for x in torch.tensor(values).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()]


def compare(rows: dict[tuple[str, str], list[Timed]], method: str) -> dict[str, Any]:
    """The entry of a method; `rows` by method and mode, prompts in order.

    Raises:
        ValueError: an exact text is not that of plain decoding in the same mode.
    """
    equal = {
        mode: sum(a.tokens == b.tokens for a, b in zip(rows[method, mode], rows["none", mode], strict=True))
        for mode in MODES
    }
    count = len(rows[method, "exact"])
    if equal["exact"] < count:
        raise ValueError(f"{method}: {count - equal['exact']} of {count} exact texts are not those of plain decoding")
    pairs = list(zip(rows[method, "exact"], rows[method, "normal"], strict=True))
    gains = {
        mode: quartiles([b.decode / a.decode for a, b in zip(rows[method, mode], rows["none", mode], strict=True)])
        for mode in MODES
    }
    return {
        "step_ratio": quartiles([(a.decode / a.steps) / (b.decode / b.steps) for a, b in pairs]),
        "prefill_ratio": quartiles([a.prefill / b.prefill for a, b in pairs]),
        "speedup_over_plain": gains,
        "texts_equal_plain": equal,
        "prompts": count,
    }


def main() -> None:
    """Measure, print a line a method, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="tiny")
    parser.add_argument("--methods", nargs="+", default=["none", "ngram", "draft_model"])
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    methods = list(dict.fromkeys(["none", *options.methods]))
    model, tokenizer = load_model(options.target), load_tokenizer(options.target)
    questions = load_questions(per_category=-(-options.prompts // 5))
    prompts = [tokenizer(q.turns[0])["input_ids"] for q in questions.items][: options.prompts]
    engines = {
        (method, mode): Engine(model, method, None, "coupled", exact=exact)
        for method in methods
        for mode, exact in MODES.items()
    }
    rows: dict[tuple[str, str], list[Timed]] = {key: [] for key in engines}
    for i, prompt in enumerate(track([prompts[0], *prompts], "by turns", console=Console(stderr=True))):
        for key, engine in engines.items():
            timed = decode(engine, prompt, options.tokens)
            if i:  # the first prompt once more, before, to warm up
                rows[key].append(timed)
    entries = {method: compare(rows, method) for method in methods}
    for method, entry in entries.items():
        low, middle, high = entry["step_ratio"]
        gains = ", ".join(f"{mode} {entry['speedup_over_plain'][mode][1]:.2f}" for mode in MODES)
        print(
            f"{method}: a step takes {middle:.2f} times as long ({low:.2f} to {high:.2f}), the prefill "
            f"{entry['prefill_ratio'][1]:.2f}; over plain decoding: {gains}"
        )
    about = {"name": questions.name, "sha256": questions.sha256, "count": len(prompts)}
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    origin = provenance.collect(provenance.command_line(), settings, about)
    block = engines["none", "exact"].target.block_rows
    result = {"provenance": origin, "block_rows": block, "methods": entries}
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "provenance"}))


if __name__ == "__main__":
    main()
