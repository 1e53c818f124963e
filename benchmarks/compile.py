"""Eager against compiled verification: `python benchmarks/compile.py`. Ratios; the last line is JSON.

A random 16-layer, 256-wide bf16 Llama verifies a chain of N nodes behind a context, one thread, CPU time, the two sides
by turns in one process: on a busy machine times say little, their ratio within a pair does.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from specdec.target import Target
from specdec.tree.token_tree import TokenTree


def targets(context: int, most: int) -> dict[str, Target]:
    """The eager and the compiled one, with the same text in one slot."""
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=16,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval()
    made = {"eager": Target(model), "compiled": Target(model, compile=True)}
    for target in made.values():
        target.open(1, context, most)
        target.prefill([0], [[i % 8000 for i in range(5, 5 + context)]])
    return made


def pairs(sides: dict[str, Target], nodes: int, repeats: int) -> list[tuple[float, float]]:
    """CPU milliseconds of an eager and of a compiled pass over a chain of `nodes`, by turns."""
    tree = TokenTree.chain(torch.arange(7, 7 + nodes)[None])
    _ = tree.words  # not part of the pass

    def once(target: Target) -> float:
        started = time.process_time()
        target.verify(tree)
        return (time.process_time() - started) * 1e3

    for _ in range(5):
        for target in sides.values():
            target.verify(tree)
    return [(once(sides["eager"]), once(sides["compiled"])) for _ in range(repeats)]


def quartiles(values: list[float]) -> list[float]:
    """The 25th, 50th and 75th percentile."""
    return [round(x, 3) for x in torch.tensor(values).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()]


def main() -> None:
    """Measure, print a line a size, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=100)
    arguments = parser.parse_args()
    sides = targets(arguments.context, max(arguments.nodes))
    result = {}
    for nodes in arguments.nodes:
        sys.stderr.write(f"compiling for {nodes} nodes\n")
        measured = pairs(sides, nodes, arguments.repeats)
        ratio = quartiles([eager / compiled for eager, compiled in measured])
        eager, compiled = (quartiles(list(side)) for side in zip(*measured, strict=True))
        print(f"N={nodes}: eager / compiled {ratio[1]:.2f} (quartiles {ratio[0]:.2f} to {ratio[2]:.2f})")
        result[f"n{nodes}"] = {"ratio": ratio, "eager_ms": eager, "compiled_ms": compiled}
    print(json.dumps({"context": arguments.context, "repeats": arguments.repeats, "torch": torch.__version__} | result))


if __name__ == "__main__":
    main()
