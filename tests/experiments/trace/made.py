"""Traces made up, and one of tiny random models."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from specdec.engine import Engine
from specdec.experiments.trace.make import trace_text
from specdec.experiments.trace.record import Span, Trace, TracedStep
from specdec.request import Request
from specdec.sampling import SamplingParams

from ...models import byte_tokenizer, make_model, noisy_copy

EVIL = [
    "</script><script>alert(1)</script>",
    "<b>",
    '"',
    "'",
    "\\",
    "<!--",
    "]]>",
    "↵",
    "\\u2028",
    "é",
    "日本",
    "&amp;",
]
PROMPT = "the cat sat on the <em>mat</em>"
PHASES = ("draft", "verify", "accept", "commit", "draft")


def models(**settings: Any) -> tuple[PreTrainedModel, PreTrainedModel, Any]:
    """A target, a draft model that often agrees, and a tokenizer of theirs."""
    tokenizer = byte_tokenizer()
    target = make_model(vocab_size=len(tokenizer), dtype=torch.float64, **settings)
    return target, noisy_copy(target, 0.1), tokenizer


def real_trace(tokens: int = 24) -> Trace:
    """Best-first trees of a draft model."""
    target, draft, tokenizer = models()
    engine = Engine(target, draft, "best_first", "coupled")
    request = Request(tokenizer(PROMPT)["input_ids"], tokens, SamplingParams())
    return trace_text(engine, request, tokenizer, "draft_model", 7)


def made_trace(steps: int, nodes: int, words: Sequence[str] = EVIL, method: str = "made_up", seed: int = 0) -> Trace:
    """Random trees of any words, with sources, riders and times; every second step accepts a path."""
    chance = random.Random(seed)
    traced, pieces, now = [], [("", "start")], 0.02
    for number in range(steps):
        parents = [-1, *(chance.randrange(max(0, j - 5), j) for j in range(1, nodes))]
        path = [0]
        while number % 2 == 0 and path[-1] in parents:
            path.append(parents.index(path[-1]))
        spans = []
        for phase in PHASES:
            spans.append(Span(phase, now, now + chance.uniform(0.001, 0.01)))
            now = spans[-1].end
        tokens = [chance.randrange(len(words)) for _ in parents]
        own = chance.randrange(len(words))
        traced.append(
            TracedStep(
                tokens=tokens,
                parents=parents,
                draft=[None, *(chance.choice([None, chance.random()]) for _ in parents[1:])],
                target=[None, *(chance.random() for _ in parents[1:])],
                path=path,
                own=own,
                own_target=chance.random(),
                sources={"NGram": list(range(1, nodes, 2)), "Suffix <u>": list(range(1, nodes, 3))},
                rider_tokens=[0, 1, 2],
                rider_parents=[-1, 0, -1],
                spans=spans,
                kept=len(path),
            )
        )
        pieces.append(("".join(words[tokens[j]] for j in path[1:]), words[own]))
        now += 0.001
    return Trace(
        method=method,
        question_id="q<1>",
        sampling={"temperature": 0.8, "top_p": 0.95},
        prompt="</pre><b>prompt",
        prefill=0.015,
        first=0,
        steps=traced,
        words=dict(enumerate(words)),
        pieces=pieces,
    )
