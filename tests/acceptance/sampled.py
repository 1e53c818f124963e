"""Sampled texts of the whole loop with small random models: every drafter, rule and setting."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from specdec import registry
from specdec.acceptance.block import Block
from specdec.acceptance.coupled import Coupled
from specdec.acceptance.rejection import Rejection
from specdec.acceptance.traversal import Traversal
from specdec.core import AcceptanceRule, TreePolicy
from specdec.decode import decode
from specdec.metrics import DecodingStats
from specdec.request import Request
from specdec.sampling import SamplingParams
from specdec.step import Step
from specdec.target import Target, attach
from specdec.tree.best_first import BestFirst
from specdec.tree.static import StaticTree, chain

from ..drafters.test_contract import build_drafter
from ..fakes import write_datastore
from ..models import make_model, noisy_copy
from .places import Places, read

VOCAB = 6
PROMPT = 3  # tokens, at random
SLOTS = 512

TEMPERATURES = (0.7, 1.0, 1.5)
FILTERS: dict[str, dict[str, float]] = {
    "top-k": {"top_k": 4},
    "top-p": {"top_p": 0.8},
    "min-p": {"min_p": 0.1},
    "penalty": {"repetition_penalty": 1.5},
}
SETTINGS = [{"temperature": t, **f} for t, f in itertools.product(TEMPERATURES, FILTERS.values())]
LONG, SHORT = 48, 16  # new tokens; short where the penalty changes with them: soon it is on all six tokens

RULES: dict[str, AcceptanceRule] = {
    "coupled": Coupled(),
    "rejection": Rejection(),
    "block": Block(),
    "traversal": Traversal(),
}
PATHS = [[0], [1], [2], [0, 0], [0, 1], [1, 0]]
DRAFTERS = registry.names("drafter")
HEADS = ("block", "eagle", "hydra", "medusa")  # of the target, at random
SMALLER: dict[str, dict[str, Any]] = {  # than the yaml's, to save time; and adaptive where sizes do change
    "adaptive": {"drafter": "draft_model", "curve": 0.5 / SLOTS},
    "hybrid": {"max_nodes": 7, "min_probability": 0.15},
    "lookahead": {"window": 2, "ngram": 3, "guesses": 2, "pool": 64},
    "ngram": {"max_nodes": 7, "length": 3},
    "retrieval": {"max_nodes": 7, "length": 3, "samples": 8},
    "suffix": {"max_nodes": 5, "min_probability": 0.15},
    "universal": {"tree": chain(2), "max_nodes": 4},
}


@cache
def target_model(layers: int = 1) -> PreTrainedModel:
    return make_model(vocab_size=VOCAB, num_hidden_layers=layers, initializer_range=0.15)


@cache
def corpus() -> Path:
    texts = torch.randint(0, VOCAB, (40, 20), generator=torch.Generator().manual_seed(1)).tolist()
    return write_datastore(Path(tempfile.mkdtemp()) / "datastore.bin", texts, VOCAB)


def make_tree(drafter: str, rule: str, replacement: bool) -> TreePolicy:
    """Chains for `block`, else trees: of the likeliest paths where noise is shared, of drawn children elsewhere."""
    if rule == "block":
        return chain(2)
    likeliest = rule == "coupled" and drafter in (*HEADS, "draft_model", "early_exit")
    return BestFirst(max_nodes=7, depth=2, top_k=3) if likeliest else StaticTree(PATHS, replacement)


def make_run(drafter: str, rule: str, replacement: bool = False) -> Step:
    """`replacement`: siblings that are drawn are drawn with it."""
    model = target_model(2 if drafter == "early_exit" else 1)
    other = model if drafter in (*HEADS, "synthetic") else noisy_copy(model, scale=0.3)
    settings = {"tree": make_tree(drafter, rule, replacement), "path": corpus(), **SMALLER.get(drafter, {})}
    made = build_drafter(drafter, other, **settings)
    target = Target(model, hidden_layers=made.needs.hidden_layers)
    return Step(target, attach(made, target), RULES[rule], SLOTS, PROMPT + LONG)


def write(
    run: Step, settings: Sequence[Mapping[str, float]], draws: int, seed: int = 0, twice: bool = False
) -> tuple[list[Places], float]:
    """At least `draws` places of every setting, all in one run; and how many drafted tokens were accepted per step.

    Args:
        run: its drafter may have learned from earlier texts.
        settings: of the requests, in random order.
        draws: of three tokens.
        seed: other texts.
        twice: every request is served once before, unseen, SLOTS requests earlier: drafters have read what it writes.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = [SHORT if "repetition_penalty" in s else LONG for s in settings]
    kinds = [kind for kind, length in enumerate(lengths) for _ in range(-(-draws // (length - 2)))]
    kinds = [kinds[i] for i in torch.randperm(len(kinds), generator=generator).tolist()]
    prompts = torch.randint(0, VOCAB, (len(kinds), PROMPT), generator=generator).tolist()
    params = [SamplingParams.from_dict(s) for s in settings]
    requests = [
        Request(prompt, lengths[kind], replace(params[kind], seed=(seed << 20) + index))
        for index, (kind, prompt) in enumerate(zip(kinds, prompts, strict=True))
    ]
    queue = [(index, True) for index in range(len(requests))]
    if twice:
        queue = [
            (i, seen) for low in range(0, len(queue), SLOTS) for seen in (False, True) for i, _ in queue[low:][:SLOTS]
        ]
    stats = DecodingStats()
    written: list[list[list[int]]] = [[] for _ in settings]
    for generation, _ in decode(run, (requests[index] for index, _ in queue), stats):
        index, seen = queue[generation.index]
        if generation.finished and seen:
            written[kinds[index]].append(generation.ids)
    parts = [
        read(run.target.model, torch.tensor(texts), PROMPT, s, generator)
        for texts, s in zip(written, settings, strict=True)
    ]
    return parts, sum(r.accepted for r in stats.requests) / stats.steps
