"""In-flight batching: against static batches, transformers' `generate_batch` and vLLM, and what it costs by itself.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/serving.py --compile --vllm VENV/bin/python \\
        --output benchmarks/results/cpu/serving.json

Every way serves the same requests (ragged prompts, ragged lengths, greedy, no end) with the same slots and the same
rows of a forward pass, by turns, after a warm-up of its own; a ratio is of one round's tokens per second, and the
spread that of the rounds. Texts are compared with plain decoding's, one request at a time. Then what sharing a prefix
saves, what bookkeeping takes, and whether a long queue costs anything. The last line of stdout is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel

from specdec import DecodingStats, SamplingParams
from specdec.engine import Engine
from specdec.experiments import lossless, provenance
from specdec.experiments.data import load_questions
from specdec.experiments.engines.vllm_engine import SCRIPT
from specdec.experiments.engines.worker import Worker
from specdec.loading import load_model, load_tokenizer, model_path
from specdec.request import Request
from specdec.serving_settings import ServingSettings

Texts = list[list[int]]
Way = Callable[[Sequence[Request]], Texts]
PROMPTS, OUTPUTS = (50, 400), (16, 256)  # tokens
TARGETS = {  # tokens per second over
    ("in flight", "static"): 1.4,
    ("in flight", "transformers"): 1.3,
    ("in flight, compiled", "static, compiled"): 1.4,
    ("in flight, compiled", "vLLM"): 1.0,
}


def main() -> None:
    """Run all parts and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="tiny")
    parser.add_argument("--drafter", default="suffix", help="of the ways that speculate")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--rows", type=int, default=256, help="of a forward pass")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--queue", type=int, default=10_000, help="requests that wait")
    parser.add_argument("--compile", action="store_true", help="our passes too; vLLM's are by themselves")
    parser.add_argument("--vllm", help="a Python that has vLLM")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    model, tokenizer = load_model(options.target), load_tokenizer(options.target)
    questions = load_questions(per_category=20)
    words = [token for q in questions.items for token in tokenizer(q.turns[0])["input_ids"]]
    requests = ragged(words, options.requests)
    data = {"name": questions.name, "sha256": questions.sha256, "count": len(questions.items)}
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    result: dict[str, Any] = {
        "provenance": provenance.collect(provenance.command_line(), settings, data),
        "prompt_tokens": sum(len(r.prompt) for r in requests),
        "new_tokens": sum(r.max_new_tokens for r in requests),
    }
    plain, drafting = Engine(model, "none", None, "coupled"), Engine(model, options.drafter, None, "coupled")
    alone = [serve_static(plain, 1)([request])[0] for request in track(requests, "one at a time", console=stderr())]
    worker = open_vllm(options) if options.vllm else None
    ways = ways_of(options, model, plain, drafting, worker)
    result["by_turns"] = by_turns(ways, requests, alone, plain, options.rounds)
    if worker is not None:
        worker.close()
    result["prefix"] = prefix(plain, words)
    result["bookkeeping"] = bookkeeping(plain, requests, options.rows)
    result["queue"] = long_queue(plain, words, options.queue)
    show(result)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in result.items() if k != "provenance"}))


def stderr() -> Console:
    """Where progress is shown."""
    return Console(stderr=True)


def ragged(words: Sequence[int], count: int) -> list[Request]:
    """Stretches of a text, and lengths, drawn once and for all."""
    draw = random.Random(0)
    requests = []
    for _ in range(count):
        length = draw.randint(*PROMPTS)
        first = draw.randrange(len(words) - length)
        requests.append(Request(list(words[first : first + length]), draw.randint(*OUTPUTS)))
    return requests


def ways_of(
    options: argparse.Namespace, model: PreTrainedModel, plain: Engine, drafting: Engine, worker: Worker | None
) -> dict[str, Way]:
    """What takes turns."""
    slots, rows = options.slots, options.rows
    ways: dict[str, Way] = {"static": serve_static(plain, slots), "in flight": serve_in_flight(plain, slots, rows)}
    ways[f"{options.drafter}, static"] = serve_static(drafting, slots)
    ways[f"{options.drafter}, in flight"] = serve_in_flight(drafting, slots, rows)
    ways["transformers"] = serve_transformers(model, slots, rows)
    if options.compile:
        compiled = Engine(model, "none", None, "coupled", compile=True)
        compiled.warmup(slots)
        ways["static, compiled"] = serve_static(compiled, slots)
        ways["in flight, compiled"] = serve_in_flight(compiled, slots, rows)
    if worker is not None:
        ways["vLLM"] = serve_vllm(worker)
    return ways


def serve_static(engine: Engine, slots: int) -> Way:
    """Batches of `slots`: the next one begins when the longest of this one has ended."""

    def serve(requests: Sequence[Request]) -> Texts:
        texts: Texts = [[] for _ in requests]
        for first in range(0, len(requests), slots):
            for generation, tokens in engine.run(requests[first : first + slots], DecodingStats()):
                texts[first + generation.index] += tokens
        return texts

    return serve


def serve_in_flight(engine: Engine, slots: int, rows: int) -> Way:
    """`generate_many`."""

    def serve(requests: Sequence[Request]) -> Texts:
        texts: Texts = [[] for _ in requests]
        longest = PROMPTS[1] + OUTPUTS[1]
        pool = ServingSettings(slots, max_length=longest, rows=rows, keep=False, sharing=False)
        for generation in engine.run_many(((r, None) for r in requests), DecodingStats(), pool):
            if generation.error is not None:
                raise generation.error
            texts[generation.index] = generation.new_ids
        return texts

    return serve


def serve_transformers(model: PreTrainedModel, slots: int, rows: int) -> Way:
    """The manager behind `generate_batch`, which gives every request the same length; here each has its own."""
    limits = ContinuousBatchingConfig(
        max_batch_tokens=rows,
        max_requests_per_batch=slots,
        page_size=64,
        num_blocks=slots * -(-(PROMPTS[1] + OUTPUTS[1] + 64) // 64),
        allow_block_sharing=False,
    )
    settings = GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=OUTPUTS[1])

    def serve(requests: Sequence[Request]) -> Texts:
        found: dict[str, list[int]] = {}
        with model.continuous_batching_context_manager(
            generation_config=settings, continuous_batching_config=limits
        ) as manager:
            names = [manager.add_request(list(r.prompt), max_new_tokens=r.max_new_tokens) for r in requests]
            while len(found) < len(requests):
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    if result.error:
                        raise RuntimeError(result.error)
                    found[result.request_id] = list(result.generated_tokens)
                elif result is None and not manager.is_running():
                    raise RuntimeError("transformers' manager has stopped")
        return [found[name] for name in names]

    return serve


def open_vllm(options: argparse.Namespace) -> Worker:
    """With the same slots and rows."""
    threads = str(torch.get_num_threads())
    worker = Worker(options.vllm, SCRIPT, "vLLM", {"OMP_NUM_THREADS": threads, "VLLM_CPU_OMP_THREADS_BIND": "nobind"})
    settings = {
        "model": model_path(options.target),
        "dtype": "bfloat16",
        "enable_prefix_caching": False,
        "max_num_seqs": options.slots,
        "max_num_batched_tokens": options.rows,
        "max_model_len": PROMPTS[1] + OUTPUTS[1],
    }
    worker.ask({"open": settings})
    return worker


def serve_vllm(worker: Worker) -> Way:
    """Its own in-flight batching."""

    def serve(requests: Sequence[Request]) -> Texts:
        lengths = [r.max_new_tokens for r in requests]
        job = {"prompts": [list(r.prompt) for r in requests], "max_new_tokens": lengths, "eos": []}
        answers = worker.ask({"serve": job | {"sampling": {"temperature": 0.0}}})["answers"]
        return [[token for part in answer["passes"] for token in part] for answer in answers]

    return serve


def by_turns(
    ways: dict[str, Way], requests: Sequence[Request], alone: Texts, plain: Engine, rounds: int
) -> dict[str, Any]:
    """Tokens per second of every way, and ratios of those that ran one after the other."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    checks: dict[str, dict[str, int]] = {}
    for number in track(range(rounds + 1), "by turns", console=stderr()):
        order = list(ways.items())
        for name, serve in order[number % len(order) :] + order[: number % len(order)]:
            given = requests if number else requests[: len(requests) // 4]
            began = time.perf_counter()
            texts = serve(given)
            if number:
                seconds[name].append(time.perf_counter() - began)
            if number == 1:
                checks[name] = compared(plain, requests, alone, texts)
    tokens = sum(r.max_new_tokens for r in requests)
    return {
        "requests": len(requests),
        "seconds": seconds,
        "tokens_per_second": {name: tokens / statistics.median(times) for name, times in seconds.items()},
        "texts": checks,
        "ratios": [
            {"way": one, "over": other, "wanted": TARGETS.get((one, other)), **spread(seconds[other], seconds[one])}
            for one, other in pairs(ways)
        ],
    }


def pairs(ways: dict[str, Way]) -> list[tuple[str, str]]:
    """What is set against what: each in flight against its static batches, all others against plain in flight."""
    found = [(name, name.replace("in flight", "static")) for name in ways if "in flight" in name]
    found += [("in flight", "transformers")]
    found += [(name, "in flight") for name in ways if name.endswith(", in flight")]
    return found + [(name, "vLLM") for name in ways if "vLLM" in ways and "in flight" in name]


def spread(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """The median of the rounds' ratios, and the smallest and largest."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def compared(plain: Engine, requests: Sequence[Request], alone: Texts, texts: Texts) -> dict[str, int]:
    """How many texts are those of plain decoding, how many part at a numeric tie, how many are different."""
    found = {"equal": 0, "ties": 0, "different": 0}
    for request, expected, got in zip(requests, alone, texts, strict=True):
        check = lossless.compare(plain.target, list(request.prompt), expected, got, SamplingParams())
        found["equal" if check.equal else "ties" if check.tie else "different"] += 1
    return found


def prefix(
    engine: Engine, words: Sequence[int], count: int = 16, length: int = 1000, rounds: int = 3
) -> dict[str, Any]:
    """Requests that share `length` tokens, with and without sharing, by turns."""
    own = [Request([*words[:length], *words[length + 20 * i : length + 20 * i + 20]], 16) for i in range(count)]
    waits: dict[bool, list[float]] = {True: [], False: []}
    read = {}
    for _ in track(range(rounds), "a shared prefix", console=stderr()):
        for sharing in waits:
            pool = ServingSettings(count, max_length=length + 100, sharing=sharing)
            stats = DecodingStats()
            for generation in engine.run_many(((r, None) for r in own), stats, pool):
                assert generation.error is None
            waits[sharing].append(statistics.mean(r.ttft for r in stats.requests))
            read[sharing] = sum(r.prompt_tokens - r.shared_tokens for r in stats.requests)
    return {
        "requests": count,
        "prefix": length,
        "mean_ttft_ratio": spread(waits[False], waits[True]) | {"wanted": 4.0},
        "prompt_tokens_read": {"sharing": read[True], "apart": read[False]},
    }


def bookkeeping(engine: Engine, requests: Sequence[Request], rows: int, slots: int = 32) -> dict[str, Any]:
    """What scheduling, and all else on the host between forwards, takes of the time."""
    stats, pool = DecodingStats(), ServingSettings(slots, max_length=PROMPTS[1] + OUTPUTS[1], rows=rows)
    for generation in engine.run_many(((r, None) for r in requests), stats, pool):
        assert generation.error is None
    share = stats.phases["host"] / sum(stats.phases.values())
    return {"slots": slots, "share_of_time": share, "wanted": 0.05}


def long_queue(engine: Engine, words: Sequence[int], count: int, slots: int = 32) -> dict[str, Any]:
    """Short requests, all waiting from the beginning: the time per request, and memory, early and late."""
    draw = random.Random(1)
    waiting = [
        Request([draw.choice(words) for _ in range(draw.randint(2, 8))], draw.randint(1, 4)) for _ in range(count)
    ]
    pool, times, memory = ServingSettings(slots, max_length=64, keep=False), [time.perf_counter()], [0]
    every = max(count // 10, 1)
    served = engine.run_many(((r, None) for r in waiting), DecodingStats(), pool)
    for number, _ in enumerate(track(served, "a long queue", total=count, console=stderr()), 1):
        if number % every == 0:
            times.append(time.perf_counter())
            memory.append(resident())
    tenths = [b - a for a, b in pairwise(times)]
    return {
        "requests": count,
        "late_over_early_time": statistics.median(tenths[-3:]) / statistics.median(tenths[1:4]),
        "late_over_early_memory": memory[-1] / memory[2],
    }


def resident() -> int:
    """Bytes of this process now; the most so far where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def show(result: dict[str, Any]) -> None:
    """For the terminal."""
    table = Table("", "over", "tokens/s ratio", "wanted", "equal", "ties", "different")
    turns = result["by_turns"]
    for row in turns["ratios"]:
        texts = turns["texts"][row["way"]]
        ratio = f"{row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        wanted = "" if row["wanted"] is None else f"{row['wanted']:.2f}"
        table.add_row(row["way"], row["over"], ratio, wanted, *(str(texts[k]) for k in ("equal", "ties", "different")))
    console = Console()
    console.print(table)
    for name in ("prefix", "bookkeeping", "queue"):
        console.print(name, result[name])


if __name__ == "__main__":
    main()
