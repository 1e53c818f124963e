"""In flight on a GPU: pages, chunks, graphs and a host that is a step behind, against each request decoded alone."""

from __future__ import annotations

import pytest
import torch

from specdec import SamplingParams, SpeculativeDecoder, TextRequest
from specdec.core import own_kv_bytes
from specdec.experiments.lossless import compare

from .models import byte_tokenizer, make_model

TEXT = "the cat sat on the mat and the dog ran to the other mat "
REQUESTS = [
    TextRequest(
        TEXT[: 5 + 23 * i % 50] * (1 + i % 2) + "?" * i,
        max_new_tokens=1 + 37 * i % 90,
        sampling=SamplingParams(temperature=(0.0, 0.8)[i % 2], seed=i),
    )
    for i in range(9)
]


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("drafter", ["none", "ngram", "lookahead", "draft_model"])
def test_many_on_a_gpu_write_what_each_writes_alone(drafter: str, compile: bool) -> None:
    """Ragged requests through few slots, some with a beginning that they share; then in so few pages that some are
    preempted. In float32, where a tie may be decided otherwise."""
    many_write_what_each_writes_alone(drafter, compile, torch.device("cuda"))


def test_the_same_without_a_gpu() -> None:
    """So that the test above does what it says."""
    many_write_what_each_writes_alone("ngram", False, torch.device("cpu"))


def many_write_what_each_writes_alone(drafter: str, compile: bool, device: torch.device) -> None:
    tokenizer = byte_tokenizer()
    model = make_model("llama", vocab_size=len(tokenizer), max_position_embeddings=256).to(device)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    chosen = model if drafter == "draft_model" else drafter
    decoder = SpeculativeDecoder(model, tokenizer, drafter=chosen, compile=compile)
    plain = SpeculativeDecoder(model, tokenizer, drafter="none")
    engine, target = decoder.engine, plain.engine.target
    alone = [
        plain.generate([str(r.prompt)], max_new_tokens=r.max_new_tokens or 0, sampling=r.sampling).tokens[0]
        for r in REQUESTS
    ]
    longest = max(len(tokenizer(str(r.prompt))["input_ids"]) + (r.max_new_tokens or 0) for r in REQUESTS)
    room = engine.drafter.needs.room + engine.drafter.needs.max_nodes  # a step may be late
    few = own_kv_bytes(engine.drafter, 3, 250, model.device) + (longest + room + 32) * engine.target.kv_bytes
    for memory in (None, few):
        many = decoder.generate_many(REQUESTS, slots=3, max_length=250, memory=memory, page=16, rows=48)
        results = sorted(many, key=lambda r: r.index)
        assert [r.error for r in results] == [None] * len(REQUESTS)
        for result, request, text in zip(results, REQUESTS, alone, strict=True):
            check = compare(target, result.prompt_ids, text, result.tokens, request.sampling or SamplingParams())
            assert check.equal or check.tie, check
        assert (sum(r.stats.preemptions for r in results) > 0) == (memory is not None)
        assert sum(r.stats.shared_tokens for r in results) > 0
