"""A draft model with another tokenizer: the text is the target's own, and right drafts are accepted."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import specdec
from specdec import loading, registry
from specdec.drafters.draft_model import DraftModel
from specdec.drafters.hybrid import Hybrid
from specdec.drafters.ngram import NGram
from specdec.drafters.universal import Universal
from specdec.sampling import SamplingParams
from specdec.target import Target

from ..fakes import Harness
from ..models import make_model, ragged_batch
from .tokenizers import SOURCE, tokenizer

TEXT = SOURCE[4000:4360]


@cache
def knowing(kind: str) -> PreTrainedModel:
    """A model in float64 that has learnt one text by heart, in its own tokens."""
    ids = torch.tensor([tokenizer(kind).encode(TEXT)])
    with torch.random.fork_rng(), torch.enable_grad():
        model = make_model(vocab_size=len(tokenizer(kind)), initializer_range=0.05, max_position_embeddings=512)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(70):
            model(ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.double().requires_grad_(False)


def make(draft: str, target: str, **settings: Any) -> Universal:
    return Universal(knowing(draft), tokenizer=tokenizer(target), draft_tokenizer=tokenizer(draft), **settings)


def prompts(kind: str, lengths: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Beginnings of the text of so many characters, right padded."""
    rows = [tokenizer(kind).encode(TEXT[:length]) for length in lengths]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])


SAMPLINGS = {"greedy": SamplingParams(), "sampled": SamplingParams(temperature=0.7, top_p=0.95, seed=3)}
LENGTHS = {"one": (40,), "ragged": (40, 7, 90, 3, 61)}


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize(
    ("target", "draft", "number"),
    [("more bytes", "bytes", "ragged"), ("bytes", "pieces", "ragged"), ("pieces", "more bytes", "one")],
)
def test_text_is_the_targets_own(target: str, draft: str, number: str, sampling: SamplingParams) -> None:
    """Token for token under coupled noise; and a draft model that knows the text is believed."""
    ids, mask = prompts(target, LENGTHS[number])
    settings: dict[str, Any] = {"max_new_tokens": 40, "eos_token_id": [], "pad_token_id": 0, "sampling": sampling}
    plain = specdec.generate(knowing(target), ids, mask, drafter="none", **settings)
    for tree in ("chain", "best_first"):
        drafter = make(draft, target, tree=registry.build("tree", tree))
        ours = specdec.generate(knowing(target), ids, mask, drafter=drafter, **settings)
        assert torch.equal(ours.sequences, plain.sequences)
        assert ours.stats.mean_accepted_length_pooled > 1.5, (tree, ours.stats.mean_accepted_length_pooled)


@pytest.mark.parametrize("acceptance", ["rejection", "traversal"])
def test_other_rules(acceptance: str) -> None:
    """Drafts are fixed children, which every rule takes: greedy texts are equal."""
    ids, mask = prompts("bytes", LENGTHS["ragged"])
    settings: dict[str, Any] = {"max_new_tokens": 30, "eos_token_id": [], "pad_token_id": 0}
    plain = specdec.generate(knowing("bytes"), ids, mask, drafter="none", **settings)
    drafter = make("pieces", "bytes", tree=registry.build("tree", "best_first"))
    ours = specdec.generate(knowing("bytes"), ids, mask, drafter=drafter, acceptance=acceptance, **settings)
    assert torch.equal(ours.sequences, plain.sequences)
    assert ours.stats.mean_accepted_length_pooled > 1.5


def test_texts_of_no_sense() -> None:
    """Random models: nothing is ever right, bytes are no characters, and the text is what it is."""
    target = make_model(vocab_size=330, dtype=torch.float64)
    ids, mask, _ = ragged_batch((9, 4, 1, 17, 2), vocab=330)
    settings: dict[str, Any] = {"max_new_tokens": 40, "eos_token_id": [], "pad_token_id": 0}
    for sampling in (SamplingParams(), SamplingParams(temperature=1.0, repetition_penalty=1.2, seed=5)):
        plain = specdec.generate(target, ids, mask, drafter="none", sampling=sampling, **settings)
        ours = specdec.generate(target, ids, mask, drafter=make("pieces", "bytes"), sampling=sampling, **settings)
        assert torch.equal(ours.sequences, plain.sequences)


def test_the_cache_holds_the_text_in_the_draft_models_tokens() -> None:
    """After every step, whatever was rolled back: the logits of a plain forward over the draft tokens."""
    model = knowing("pieces")
    drafter = Universal(
        model, registry.build("tree", "best_first"), tokenizer("bytes"), tokenizer("pieces"), max_nodes=8, window=8
    )
    harness = Harness(drafter, 3, 300, SamplingParams(temperature=0.8), True)
    harness.enter([0, 2], [[80, 81, 82, 83], [90]])
    for number in range(12):
        if number == 4:
            harness.enter([1], [tokenizer("bytes").encode("return x")])
        if number == 7:
            harness.leave(0)
            harness.enter([0], [[100, 101]])
        harness.step()
        reading, logits = drafter._catch_up(harness.state, sorted(harness.texts))
        assert logits is not None
        for slot, got in zip(reading, logits, strict=True):
            tokens = harness.state.texts[slot].tokens
            assert int(harness.state.model.lengths[slot]) == len(tokens)
            assert torch.allclose(got, model(torch.tensor([tokens])).logits[0, -1], atol=1e-9)


def test_a_draft_model_with_less_room_than_the_text() -> None:
    """It goes on with the last half of what fits, again and again."""
    config: dict[str, Any] = {"vocab_size": len(tokenizer("bytes")), "max_position_embeddings": 40}
    small = make_model(dtype=torch.float64, **config)
    drafter = Universal(small, tokenizer=tokenizer("more bytes"), draft_tokenizer=tokenizer("bytes"))
    ids, mask = prompts("more bytes", LENGTHS["ragged"])
    settings: dict[str, Any] = {"max_new_tokens": 60, "eos_token_id": [], "pad_token_id": 0}
    plain = specdec.generate(knowing("more bytes"), ids, mask, drafter="none", **settings)
    ours = specdec.generate(knowing("more bytes"), ids, mask, drafter=drafter, **settings)
    assert torch.equal(ours.sequences, plain.sequences)


def test_one_tokenizer_or_two_that_are_the_same() -> None:
    """Through text a draft model is as good as by tokens: both accept as much."""
    ids, mask = prompts("bytes", LENGTHS["ragged"])
    settings: dict[str, Any] = {"max_new_tokens": 60, "eos_token_id": [], "pad_token_id": 0}
    by_tokens, by_text = (
        specdec.generate(knowing("bytes"), ids, mask, drafter=drafter, **settings).stats.mean_accepted_length_pooled
        for drafter in (DraftModel(knowing("bytes")), make("bytes", "bytes"))
    )
    assert by_text > 0.9 * by_tokens
    assert by_tokens > 3


def test_the_targets_tokenizer_is_the_one_beside_it(tmp_path: Path) -> None:
    deepcopy(knowing("more bytes")).float().save_pretrained(tmp_path)
    tokenizer("more bytes").save_pretrained(tmp_path)
    target = Target(loading.load_model(tmp_path, "cpu"))
    first = Universal(knowing("bytes"), draft_tokenizer=tokenizer("bytes"))
    with pytest.raises(ValueError, match="universal does not know the target's tokenizer"):
        first.translator  # noqa: B018
    attached = first.attach(target)
    assert attached.translator.target.tokens("the text") == tokenizer("more bytes").encode("the text")
    assert first._translator is None, "the first is still free for other targets"
    given = make("bytes", "pieces")
    assert given.attach(target) is given
    out = specdec.generate(target.model, prompts("more bytes", (30,))[0], drafter=Hybrid([NGram(), first]))
    assert out.stats.new_tokens == 128
    with pytest.raises(ValueError, match="no tokenizer beside a model made in memory; set `draft_tokenizer`"):
        Universal(make_model())
    with pytest.raises(ValueError, match="no tokenizer beside a model made in memory; set `tokenizer`"):
        specdec.generate(make_model(), torch.tensor([[1, 2]]), drafter=first, max_new_tokens=2)


def test_refuses() -> None:
    for wrong in ({"max_nodes": 1}, {"window": 4}):
        with pytest.raises(ValueError, match="universal needs max_nodes >= 2 and window >= 8"):
            make("bytes", "pieces", **wrong)
    tree = registry.build("tree", "best_first", top_k=64)
    with pytest.raises(ValueError, match="drafts 64 children a node; 40 tokens can be drafted"):
        Universal(make_model(vocab_size=40), tree, tokenizer("bytes"), tokenizer("bytes"))
