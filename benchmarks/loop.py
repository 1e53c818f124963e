"""The decoding loop against transformers' own: time per token, overhead, batching, context, memory. On a CPU or a GPU.

    python benchmarks/loop.py --output benchmarks/results/cpu/loop.json

Every speed is a ratio of two methods that ran on the same prompts by turns in one process, with a bootstrap interval
over prompts; texts are compared first, and a ratio is marked when they differ by more than a numeric tie. The last line
of stdout is the result as JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import PreTrainedModel

from specdec import DecodingStats, SamplingParams, TokenTree
from specdec.core import DraftNeeds
from specdec.drafters.draft_model import DraftModel
from specdec.drafters.ngram import NGram
from specdec.engine import Engine
from specdec.experiments import lossless, provenance
from specdec.experiments.data import load_questions
from specdec.loading import load_model, load_tokenizer
from specdec.metrics import speedup
from specdec.request import Request
from specdec.tree.static import chain
from specdec.tree.token_tree import merge_paths

NGRAM, LENGTH, DRAFT_LENGTH = 3, 8, 4
Run = Callable[[list[int]], list[int]]


class ForwardTimer:
    """Adds up the time spent inside models' forward passes."""

    def __init__(self, *models: PreTrainedModel):
        self.seconds = 0.0
        self._hooks = [m.register_forward_pre_hook(self._enter) for m in models]
        self._hooks += [m.register_forward_hook(self._leave) for m in models]
        self._entered = 0.0

    def _enter(self, *_: Any) -> None:
        self._entered = time.perf_counter()

    def _leave(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._entered

    def close(self) -> None:
        """Stop timing."""
        for hook in self._hooks:
            hook.remove()


def main() -> None:
    """Run all parts and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="tiny")
    parser.add_argument("--draft", default="tiny-draft")
    parser.add_argument("--prompts", type=int, default=25)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--output", type=Path)
    parser.add_argument(
        "--compile", action="store_true", help="our engines with compile=True, against transformers only"
    )
    parser.add_argument("--memory", action="store_true", help="only the memory part (run in a process of its own)")
    options = parser.parse_args()
    if options.memory:
        print(json.dumps(memory(options.target)))
        return
    target, draft = load_model(options.target), load_model(options.draft)
    tokenizer = load_tokenizer(options.target)
    questions = load_questions(per_category=-(-options.prompts // 5))
    prompts = [tokenizer(q.turns[0])["input_ids"] for q in questions.items][: options.prompts]
    data = {"name": questions.name, "sha256": questions.sha256, "count": len(prompts)}
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    result: dict[str, Any] = {"provenance": provenance.collect(provenance.command_line(), settings, data)}
    result["against_transformers"] = against_transformers(target, draft, prompts, options.tokens, options.compile)
    if options.compile:
        finish(result, options.output)
        return
    result["outside_forwards"] = outside_forwards(target, draft, prompts, options.tokens)
    result["batch_8_over_1"] = batching(target, prompts, options.tokens)
    result["context"] = context_growth(target)
    result["temperature"] = temperature_cost()
    child = [sys.executable, __file__, "--memory", "--target", options.target]
    result["memory"] = json.loads(subprocess.run(child, capture_output=True, text=True, check=True).stdout)
    finish(result, options.output)


def finish(result: dict[str, Any], output: Path | None) -> None:
    """Print, write, and print again as JSON."""
    show(result)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "provenance"}))


def ours(engine: Engine, tokens: int, stats: DecodingStats | None = None) -> Run:
    """Decode one prompt greedily, without an end."""

    def run(prompt: list[int]) -> list[int]:
        text: list[int] = []
        for _, new in engine.run([Request(prompt, tokens)], stats if stats is not None else DecodingStats()):
            text += new
        return text

    return run


def theirs(model: PreTrainedModel, tokens: int, **settings: Any) -> Run:
    """The same with transformers' generate."""

    def run(prompt: list[int]) -> list[int]:
        ids = torch.tensor([prompt], device=model.device)
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=0,
            eos_token_id=None, **settings,
        )  # fmt: skip
        result: list[int] = output[0, len(prompt) :].tolist()
        return result

    return run


def timed(methods: dict[str, Run], prompts: list[list[int]], what: str) -> dict[str, list[tuple[list[int], float]]]:
    """Every method on every prompt by turns; the first prompt once more, before, to warm up."""
    rows: dict[str, list[tuple[list[int], float]]] = {name: [] for name in methods}
    for i, prompt in enumerate(track([prompts[0], *prompts], what, console=Console(stderr=True))):
        for name, method in methods.items():
            started = time.perf_counter()
            text = method(prompt)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if i:
                rows[name].append((text, time.perf_counter() - started))
    return rows


def against_transformers(
    target: PreTrainedModel, draft: PreTrainedModel, prompts: list[list[int]], tokens: int, compile: bool = False
) -> list[dict[str, Any]]:
    """Tokens per second over transformers' with the same weights, n, length and draft."""
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    fixed = {"num_assistant_tokens": DRAFT_LENGTH, "assistant_confidence_threshold": 0.0}
    lookup = {"prompt_lookup_num_tokens": LENGTH, "max_matching_ngram_size": NGRAM}

    def assisted(prompt: list[int], **settings: Any) -> list[int]:
        for name, value in settings.items():
            setattr(draft.generation_config, name, value)
        return theirs(target, tokens, assistant_model=draft)(prompt)

    default = {
        "num_assistant_tokens": draft.generation_config.num_assistant_tokens or 20,
        "assistant_confidence_threshold": draft.generation_config.assistant_confidence_threshold or 0.4,
    }
    engines = {
        "none": Engine(target, "none", None, "coupled", compile=compile),
        "ngram": Engine(target, NGram(NGRAM, 1, LENGTH), None, "coupled", compile=compile),
        "draft_model": Engine(
            target, DraftModel(draft, chain(DRAFT_LENGTH), compile=compile), None, "coupled", compile=compile
        ),
    }
    for engine in engines.values() if compile else ():
        engine.warmup()
    methods: dict[str, Run] = {name: ours(engine, tokens) for name, engine in engines.items()}
    methods |= {
        "transformers generate": theirs(target, tokens),
        "transformers prompt lookup": theirs(target, tokens, **lookup),
        "transformers assisted, same length": lambda p: assisted(p, **fixed),
        "transformers assisted, its default": lambda p: assisted(p, **default),
    }
    rows = timed(methods, prompts, "against transformers")
    pairs = [
        ("none", "transformers generate"),
        ("ngram", "transformers prompt lookup"),
        ("draft_model", "transformers assisted, same length"),
        ("draft_model", "transformers assisted, its default"),
        ("ngram", "none"),
        ("draft_model", "none"),
    ]
    return [_pair(rows, mine, other, prompts, engines["none"]) for mine, other in pairs]


def _pair(
    rows: dict[str, list[tuple[list[int], float]]], mine: str, other: str, prompts: list[list[int]], engine: Engine
) -> dict[str, Any]:
    checks = [
        lossless.compare(engine.target, prompt, b[0], a[0], SamplingParams())
        for prompt, a, b in zip(prompts, rows[mine], rows[other], strict=True)
    ]
    ratio = speedup([(len(t), s) for t, s in rows[mine]], [(len(t), s) for t, s in rows[other]])
    return {
        "method": mine,
        "over": other,
        "tokens_per_second_ratio": ratio._asdict(),
        "texts_equal": sum(bool(c.equal) for c in checks),
        "numeric_ties": sum(bool(c.tie) for c in checks),
        "different": sum(not c.equal and not c.tie for c in checks),
        "prompts": len(checks),
    }


def outside_forwards(
    target: PreTrainedModel, draft: PreTrainedModel, prompts: list[list[int]], tokens: int
) -> dict[str, float]:
    """Share of a step spent outside the models' forward passes."""
    shares = {}
    drafters = {"none": "none", "ngram": NGram(NGRAM, 1, LENGTH), "draft_model": DraftModel(draft, chain(DRAFT_LENGTH))}
    for name, drafter in drafters.items():
        engine, stats = Engine(target, drafter, None, "coupled"), DecodingStats()
        for prompt in prompts[:8]:
            timer = ForwardTimer(target, draft)
            text = iter(engine.run([Request(prompt, tokens)], stats))
            next(text)  # the prefill is not part of a step
            inside = timer.seconds
            before = stats.decode_seconds
            for _ in text:
                pass
            timer.close()
            shares.setdefault(name, []).append((timer.seconds - inside, stats.decode_seconds - before))
    return {name: 1 - sum(f for f, _ in pairs) / sum(d for _, d in pairs) for name, pairs in shares.items()}


def batching(target: PreTrainedModel, prompts: list[list[int]], tokens: int) -> dict[str, dict[str, float]]:
    """Tokens per second of 8 requests at once over one after the other, the same requests, by turns."""
    result = {}
    for name in ("none", "ngram"):
        engine = Engine(target, name, None, "coupled")
        groups = [prompts[i : i + 8] for i in range(0, max(len(prompts) - 7, 1), 8)]
        together, alone = [], []
        for i, group in enumerate([groups[0], *groups]):
            started = time.perf_counter()
            for _ in engine.run([Request(p, tokens) for p in group], DecodingStats()):
                pass
            middle = time.perf_counter()
            for prompt in group:
                ours(engine, tokens)(prompt)
            if i:
                together.append((len(group) * tokens, middle - started))
                alone.append((len(group) * tokens, time.perf_counter() - middle))
        result[name] = speedup(together, alone)._asdict()
    return result


@torch.inference_mode()
def context_growth(target: PreTrainedModel, short: int = 256, long: int = 2000) -> dict[str, float]:
    """How much a step grows with the context, beside how much attention alone grows (medians, by turns)."""
    engine = Engine(target, "none", None, "coupled")
    room = min(long, engine.target.max_positions - 40 or long)
    steps: dict[int, list[float]] = {short: [], room: []}
    inside: dict[int, list[float]] = {short: [], room: []}
    for _ in range(5):
        for length in steps:
            prompt = [i * 7919 % (engine.target.vocab_size - 2) + 2 for i in range(length)]
            timer = AttentionTimer()
            run = iter(engine.run([Request(prompt, 33)], DecodingStats()))
            next(run)
            for _ in range(32):
                timer.seconds, started = 0.0, time.perf_counter()
                next(run)
                steps[length].append(time.perf_counter() - started)
                inside[length].append(timer.seconds)
            timer.close()
    median = {k: (_median(steps[k]), _median(inside[k])) for k in steps}
    grown = median[room][0] - median[short][0]
    return {
        "short": short,
        "long": room,
        "step_long_over_short": median[room][0] / median[short][0],
        "share_of_growth_in_attention": (median[room][1] - median[short][1]) / grown,
        "growth_outside_attention_over_short_step": (grown - (median[room][1] - median[short][1])) / median[short][0],
    }


class AttentionTimer:
    """Adds up the time inside our attention."""

    def __init__(self) -> None:
        from specdec import attention

        self.seconds = 0.0
        self._module, self._attend = attention.packed, attention.packed.attend

        def attend(*args: Any, **settings: Any) -> torch.Tensor:
            started = time.perf_counter()
            output = self._attend(*args, **settings)
            self.seconds += time.perf_counter() - started
            return output

        self._module.attend = attend  # type: ignore[assignment]

    def close(self) -> None:
        """Stop timing."""
        self._module.attend = self._attend  # type: ignore[assignment]


class FixedTree:
    """A drafter for cost studies: 16 nodes of arbitrary tokens, whatever the text."""

    def __init__(self) -> None:
        self._paths = [[5, 6, 7, 8], [5, 6, 7, 9], [5, 6, 10], [5, 11, 12], [13, 14, 15], [13, 16], [17, 18], [19]]
        self.needs = DraftNeeds(max_nodes=len(merge_paths(1, self._paths)[0]))

    def open(self, capacity: int, max_length: int, device: torch.device) -> torch.device:
        """Only the device."""
        return device

    def start(self, *_: Any) -> None:
        """Learns nothing."""

    def propose(self, state: torch.device, roots: torch.Tensor, noise: Any) -> TokenTree:
        """Always the same tree."""
        return TokenTree.from_paths(roots.tolist(), [self._paths] * len(roots), device=state)

    def observe(self, *_: Any) -> None:
        """Learns nothing."""


def temperature_cost(vocabulary: int = 8192, tokens: int = 64, rounds: int = 9) -> dict[str, float]:
    """A step at temperature 1 over one at temperature 0: 16 nodes, a vocabulary of 8192, a random model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=256, intermediate_size=768, num_hidden_layers=16, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    engine = Engine(model, FixedTree(), None, "coupled")
    times: dict[float, list[float]] = {0.0: [], 1.0: []}
    for i in range(rounds + 1):
        for temperature, kept in times.items():
            stats = DecodingStats()
            for _ in engine.run([Request([1] * 50, tokens, SamplingParams(temperature=temperature, seed=i))], stats):
                pass
            if i:
                kept.append(stats.decode_seconds / stats.steps)
    ratios = sorted(b / a for a, b in zip(times[0.0], times[1.0], strict=True))
    return {"ratio": _median(ratios), "low": ratios[0], "high": ratios[-1]}


def memory(name: str, batch: int = 8, length: int = 1900, new_tokens: int = 64) -> dict[str, float]:
    """Resident memory that loading and decoding add, over weights and KV by arithmetic. Linux."""
    warm_up = load_model(name)
    Engine(warm_up, "ngram", None, "coupled")
    ours(Engine(warm_up, "ngram", None, "coupled"), 8)([5, 6, 7])
    bytes_of_weights = sum(p.nbytes for p in {id(p): p for p in warm_up.parameters()}.values())
    before = _resident() - bytes_of_weights
    config = warm_up.config
    engine = Engine(warm_up, "ngram", None, "coupled")
    prompts = [[(i * 7919 + b) % 4000 + 2 for i in range(length)] for b in range(batch)]
    run = iter(engine.run([Request(p, new_tokens) for p in prompts], DecodingStats()))
    for _ in run:
        pass
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * warm_up.dtype.itemsize
    needed = bytes_of_weights + batch * (length + new_tokens) * per_token
    ctypes.CDLL(None).malloc_trim(0)  # what the C library has freed but kept is not in use
    used = _resident() - before
    arena = bytes_of_weights + engine.target.cache.nbytes
    return {
        "needed_bytes": needed,
        "allocated_over_needed": arena / needed,
        "resident_over_needed": used / needed,
    }


def _resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmRSS in /proc/self/status")


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def show(result: dict[str, Any]) -> None:
    """A table of everything, with what was aimed at."""
    console = Console()
    table = Table("what", "value", "interval", "texts", title="decoding loop")
    for row in result["against_transformers"]:
        ratio = row["tokens_per_second_ratio"]
        texts = f"{row['texts_equal']} equal, {row['numeric_ties']} ties, {row['different']} different"
        mark = "" if not row["different"] else " (texts differ!)"
        interval = f"{ratio['low']:.2f} to {ratio['high']:.2f}"
        table.add_row(f"{row['method']} / {row['over']}", f"{ratio['ratio']:.2f}x{mark}", interval, texts)
    if "memory" not in result:
        console.print(table)
        return
    for name, share in result["outside_forwards"].items():
        table.add_row(f"{name}: step outside the models' forwards", f"{share:.1%}")
    for name, ratio in result["batch_8_over_1"].items():
        table.add_row(
            f"{name}: batch 8 / batch 1, tokens/s",
            f"{ratio['ratio']:.2f}x",
            f"{ratio['low']:.2f} to {ratio['high']:.2f}",
        )
    context, temperature, used = result["context"], result["temperature"], result["memory"]
    growth = f"{context['step_long_over_short']:.2f}x"
    table.add_row(f"step at {context['long']} / at {context['short']} tokens", growth)
    table.add_row("share of that growth inside attention", f"{context['share_of_growth_in_attention']:.0%}")
    table.add_row(
        "step at temperature 1 / 0, 16 nodes, vocabulary 8192",
        f"{temperature['ratio']:.2f}x",
        f"{temperature['low']:.2f} to {temperature['high']:.2f}",
    )
    table.add_row("weights + KV allocated / needed", f"{used['allocated_over_needed']:.2f}x")
    table.add_row("resident memory added / needed", f"{used['resident_over_needed']:.2f}x")
    console.print(table)


if __name__ == "__main__":
    main()
