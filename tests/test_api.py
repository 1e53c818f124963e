"""`specdec.generate` and `SpeculativeDecoder`: ends, batches, streams, processors, criteria; equal to transformers."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)
from transformers.generation.streamers import BaseStreamer

import specdec
from specdec import SamplingParams, SpeculativeDecoder, TextRequest
from specdec.core import own_kv_bytes
from specdec.text import TextPieces
from specdec.turn import Turn

from .models import byte_tokenizer, make_model, noisy_copy, plain_text, ragged_batch

GREEDY = SamplingParams()
PROMPT = [5, 6, 7, 8, 9]
IDS = torch.tensor([PROMPT])
DRAFTERS = ("none", "ngram", "best_first")


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_model("llama")


@pytest.fixture(scope="module")
def drafters(model: PreTrainedModel) -> dict[str, dict[str, Any]]:
    """Arguments of `generate` by a short name."""
    small = noisy_copy(model, 0.05)
    return {
        "none": {"drafter": "none"},
        "ngram": {"drafter": "ngram"},
        "best_first": {"drafter": small, "tree": "best_first"},
        "chain": {"drafter": small, "tree": "chain"},
        "self": {"drafter": model, "tree": "chain"},  # everything is accepted
    }


@pytest.fixture(scope="module")
def decoder() -> SpeculativeDecoder:
    """Text in, text out, with a draft model that is often right."""
    tokenizer = byte_tokenizer()
    target = make_model("llama", vocab_size=len(tokenizer), initializer_range=0.2, max_position_embeddings=256)
    target.generation_config.pad_token_id = tokenizer.pad_token_id
    return SpeculativeDecoder(target, tokenizer, drafter=noisy_copy(target, 0.05), tree="best_first")


def reference(decoder: SpeculativeDecoder, prompt: str, count: int, **settings: Any) -> str:
    """What transformers writes after a prompt."""
    ids = decoder.tokenizer(prompt)["input_ids"]
    text: str = decoder.tokenizer.decode(plain_text(decoder.model, ids, count, **settings), skip_special_tokens=True)
    return text


# Ends of texts


@pytest.mark.parametrize("name", [*DRAFTERS, "self"])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 17])
def test_never_more_than_max_new_tokens(model: PreTrainedModel, drafters: Any, name: str, count: int) -> None:
    ids, mask, prompts = ragged_batch((5, 1, 3))
    out = specdec.generate(model, ids, mask, **drafters[name], max_new_tokens=count, eos_token_id=[])
    assert out.sequences.shape == (3, 5 + count)
    assert out.sequences.dtype == ids.dtype
    assert out.stats.new_tokens == 3 * count
    assert len(out.stats.requests) == 3
    expected = [plain_text(model, p, count) if count else [] for p in prompts]
    assert out.sequences[:, 5:].tolist() == expected


@pytest.mark.parametrize("name", [*DRAFTERS, "self"])
def test_an_end_inside_an_accepted_path(model: PreTrainedModel, drafters: Any, name: str) -> None:
    """Every token of the text in turn is made the end."""
    text = plain_text(model, PROMPT, 12)
    for place, token in enumerate(text):
        first = text.index(token)
        out = specdec.generate(model, IDS, **drafters[name], max_new_tokens=12, eos_token_id=token)
        assert out.sequences[0, 5:].tolist() == text[: first + 1], place
        assert out.stats.new_tokens == first + 1


def test_several_ends_and_rows_that_end_at_different_steps(model: PreTrainedModel, drafters: Any) -> None:
    ids, mask, prompts = ragged_batch((5, 1, 3, 9, 2), left=(True,) * 5)
    texts = [plain_text(model, p, 30) for p in prompts]
    ends = [texts[0][2], texts[1][14], texts[2][7]]
    expected = model.generate(
        ids, attention_mask=mask, max_new_tokens=30, do_sample=False, eos_token_id=ends, pad_token_id=0
    )
    for name in (*DRAFTERS, "self"):
        out = specdec.generate(model, ids, mask, **drafters[name], max_new_tokens=30, eos_token_id=ends, pad_token_id=0)
        assert out.sequences.tolist() == expected.tolist()


def test_the_models_own_ends_and_padding(model: PreTrainedModel) -> None:
    text = plain_text(model, PROMPT, 9)
    other = make_model("llama", eos_token_id=[text[4], 79], pad_token_id=3)
    ids, mask, _ = ragged_batch((5, 2), left=(True, True))
    ids[0] = torch.tensor(PROMPT)
    out = specdec.generate(other, ids, mask, max_new_tokens=9)
    assert out.sequences.tolist() == other.generate(ids, attention_mask=mask, max_new_tokens=9).tolist()
    new = out.sequences[0, 5:].tolist()
    assert new == [*text[:5], 3, 3, 3, 3][: len(new)]


def test_padding_where_the_model_has_none(model: PreTrainedModel) -> None:
    other = make_model("llama", pad_token_id=None)
    ids, mask, prompts = ragged_batch((5, 2))
    texts = [plain_text(other, p, 9) for p in prompts]
    end = next(t for t in texts[0] if t not in texts[1])
    out = specdec.generate(other, ids, mask, max_new_tokens=9, eos_token_id=end)
    length = texts[0].index(end) + 1
    assert out.sequences[0, 5:].tolist() == texts[0][:length] + [end] * (9 - length)
    out = specdec.generate(other, ids, mask, max_new_tokens=9, eos_token_id=end, pad_token_id=77)
    assert out.sequences[0, 5:].tolist() == texts[0][:length] + [77] * (9 - length)


# Batches


def test_padding_on_any_side(model: PreTrainedModel) -> None:
    expected = plain_text(model, PROMPT, 10)
    for row, mask in (
        ([5, 6, 7, 8, 9, 0, 0], [1, 1, 1, 1, 1, 0, 0]),
        ([0, 0, 5, 6, 7, 8, 9], [0, 0, 1, 1, 1, 1, 1]),
        ([5, 6, 0, 7, 8, 0, 9], [1, 1, 0, 1, 1, 0, 1]),
        ([40, 5, 6, 7, 8, 9, 41], [0, 1, 1, 1, 1, 1, 0]),
    ):
        for dtype in (torch.int64, torch.bool, torch.float32):
            out = specdec.generate(
                model, torch.tensor([row]), torch.tensor([mask], dtype=dtype), max_new_tokens=10, eos_token_id=[]
            )
            assert out.sequences.tolist() == [row + expected]


def test_int32_ids_stay_int32(model: PreTrainedModel) -> None:
    out = specdec.generate(model, IDS.int(), max_new_tokens=4, eos_token_id=[])
    assert out.sequences.dtype == torch.int32
    assert out.sequences[0, 5:].tolist() == plain_text(model, PROMPT, 4)


def test_each_row_its_own_sampling(model: PreTrainedModel, drafters: Any) -> None:
    ids = IDS.repeat(4, 1)
    sampling = [
        GREEDY,
        SamplingParams(temperature=1.0, seed=1),
        SamplingParams(temperature=1.0, seed=2),
        SamplingParams(temperature=0.7, top_k=5, repetition_penalty=1.2, seed=1),
    ]
    texts = {
        name: specdec.generate(model, ids, **drafters[name], sampling=sampling, max_new_tokens=25, eos_token_id=[])
        for name in DRAFTERS
    }
    rows = texts["none"].sequences.tolist()
    assert len({tuple(row) for row in rows}) == 4
    assert rows[0][5:] == plain_text(model, PROMPT, 25)
    for name in DRAFTERS:
        assert texts[name].sequences.tolist() == rows
    for row, params in enumerate(sampling):
        alone = specdec.generate(model, IDS, drafter="none", sampling=params, max_new_tokens=25, eos_token_id=[])
        assert alone.sequences[0].tolist() == rows[row]


def test_the_same_seed_is_the_same_text_in_every_row_and_call(model: PreTrainedModel) -> None:
    sampling = SamplingParams(temperature=1.0, seed=9)
    first = specdec.generate(model, IDS.repeat(3, 1), sampling=sampling, max_new_tokens=20, eos_token_id=[]).sequences
    again = specdec.generate(model, IDS.repeat(3, 1), sampling=sampling, max_new_tokens=20, eos_token_id=[]).sequences
    assert first.tolist() == again.tolist()
    assert len({tuple(row) for row in first.tolist()}) == 1


# Processors and criteria: each node has a history of its own


class Bigram(LogitsProcessor):
    """Lifts a token that depends on the last two: a wrong history gives a wrong text."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.seen += input_ids.tolist()
        lifted = (3 * input_ids[:, -1] + 7 * input_ids[:, -2]) % 80
        return scores.scatter_add(1, lifted[:, None], torch.full_like(scores[:, :1], 3.0))


def processors(kind: str) -> LogitsProcessorList:
    made: dict[str, list[LogitsProcessor]] = {
        "no_repeat": [NoRepeatNGramLogitsProcessor(2)],
        "min_new": [MinNewTokensLengthLogitsProcessor(5, 11, torch.tensor([13, 2, 47]))],
        "bad_words": [NoBadWordsLogitsProcessor([[47], [13, 13], [2, 30]], eos_token_id=None)],
        "bigram": [Bigram()],
        "prefix": [PrefixConstrainedLogitsProcessor(lambda _, text: [(int(text[-1]) * k) % 80 for k in (2, 3, 5)], 1)],
        "several": [NoRepeatNGramLogitsProcessor(3), Bigram()],
    }
    return LogitsProcessorList(made[kind])


@pytest.fixture(scope="module")
def processed() -> dict[str, list[int]]:
    """transformers' texts by kind of processors, for all drafters."""
    return {}


@pytest.mark.parametrize("name", [*DRAFTERS, "self"])
@pytest.mark.parametrize("kind", ["no_repeat", "min_new", "bad_words", "bigram", "prefix", "several"])
def test_processors_as_in_transformers(
    model: PreTrainedModel, processed: dict[str, list[int]], drafters: Any, kind: str, name: str
) -> None:
    ends = [13, 2, 47] if kind == "min_new" else []
    if kind not in processed:
        processed[kind] = plain_text(model, PROMPT, 30, logits_processor=processors(kind), eos_token_id=ends or None)
    out = specdec.generate(
        model, IDS, **drafters[name], logits_processor=processors(kind), max_new_tokens=30, eos_token_id=ends
    )
    assert out.sequences[0, 5:].tolist() == processed[kind]


def test_processors_in_a_ragged_batch(model: PreTrainedModel, drafters: Any) -> None:
    ids, mask, prompts = ragged_batch((5, 9, 2))
    expected = [plain_text(model, p, 25, logits_processor=processors("several")) for p in prompts]
    for name in DRAFTERS:
        out = specdec.generate(
            model,
            ids,
            mask,
            **drafters[name],
            logits_processor=processors("several"),
            max_new_tokens=25,
            eos_token_id=[],
        )
        assert out.sequences[:, 9:].tolist() == expected


def test_a_processor_sees_prompt_and_path_and_nothing_else(model: PreTrainedModel, drafters: Any) -> None:
    watcher = Bigram()
    out = specdec.generate(
        model,
        IDS,
        **drafters["best_first"],
        logits_processor=LogitsProcessorList([watcher]),
        max_new_tokens=20,
        eos_token_id=[],
    )
    text = out.sequences[0].tolist()
    assert all(seen == text[: len(seen)] for seen in watcher.seen if len(seen) <= len(text))
    assert {len(seen) for seen in watcher.seen} >= set(range(5, 25))


def test_prefix_constraints_know_their_row(model: PreTrainedModel) -> None:
    ids, mask, _ = ragged_batch((5, 3, 4))
    constraint = PrefixConstrainedLogitsProcessor(lambda row, _: [10 + row], 1)
    out = specdec.generate(model, ids, mask, logits_processor=[constraint], max_new_tokens=4, eos_token_id=[])
    assert out.sequences[:, 5:].tolist() == [[10] * 4, [11] * 4, [12] * 4]


@pytest.mark.parametrize("name", [*DRAFTERS, "self"])
def test_criteria_as_in_transformers(model: PreTrainedModel, drafters: Any, name: str) -> None:
    class Sum(StoppingCriteria):
        """Depends on the whole text."""

        def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
            return input_ids.sum(-1) % 9 == 0

    expected = plain_text(model, PROMPT, 40, stopping_criteria=StoppingCriteriaList([Sum()]))
    assert len(expected) < 40
    out = specdec.generate(
        model,
        IDS,
        **drafters[name],
        stopping_criteria=StoppingCriteriaList([Sum()]),
        max_new_tokens=40,
        eos_token_id=[],
    )
    assert out.sequences[0, 5:].tolist() == expected


# Streams


class Keep(BaseStreamer):
    def __init__(self) -> None:
        self.pieces: list[list[int]] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        self.pieces.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended += 1


def test_a_streamer_gets_prompt_text_and_end(model: PreTrainedModel, drafters: Any) -> None:
    streamer = Keep()
    out = specdec.generate(model, IDS, **drafters["self"], max_new_tokens=12, eos_token_id=[], streamer=streamer)
    assert streamer.pieces[0] == PROMPT
    assert [t for piece in streamer.pieces for t in piece] == out.sequences[0].tolist()
    assert streamer.ended == 1
    assert len(streamer.pieces) < 8  # several tokens at a time


def test_a_streamer_of_nothing_ends(model: PreTrainedModel) -> None:
    streamer = Keep()
    specdec.generate(model, IDS, max_new_tokens=0, streamer=streamer)
    assert (streamer.pieces, streamer.ended) == ([PROMPT], 1)


def test_transformers_text_streamer(decoder: SpeculativeDecoder) -> None:
    ids = torch.tensor([decoder.tokenizer("the cat")["input_ids"]])
    streamer = TextIteratorStreamer(decoder.tokenizer, skip_prompt=True)
    specdec.generate(decoder.model, ids, max_new_tokens=30, eos_token_id=[], streamer=streamer)
    assert "".join(streamer) == decoder.tokenizer.decode(plain_text(decoder.model, ids[0].tolist(), 30))


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_joined_is_the_text(decoder: SpeculativeDecoder, seed: int) -> None:
    """At this temperature bytes are nearly random: broken characters, and now and then a good one."""
    sampling = SamplingParams(temperature=1.5, seed=seed)
    whole = decoder.generate("the cat", max_new_tokens=50, sampling=sampling)
    pieces = list(decoder.stream("the cat", max_new_tokens=50, sampling=sampling))
    assert "".join(pieces) == whole.text
    assert all(pieces)


TEXTS = ["naïve café", "日本語のテキスト", "🙂👩‍👩‍👧 ok", "a\ufffdb", "mixed ü 漢 🙂 end", " leading", "\n\n"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_pieces_never_split_a_character(text: str, size: int) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer(text)["input_ids"]
    pieces = TextPieces(tokenizer)
    given = [pieces.push(ids[i : i + size]) for i in range(0, len(ids), size)]
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in given)
    assert "".join([*given, pieces.flush()]) == text == tokenizer.decode(ids)


def test_pieces_of_a_cut_character_are_given_out_at_the_end() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer("a🙂")["input_ids"][:-1]
    pieces = TextPieces(tokenizer)
    assert "".join(pieces.push([t]) for t in ids) == "a"
    assert "a" + pieces.flush() == tokenizer.decode(ids)
    assert pieces.flush() == ""


def test_pieces_leave_out_special_tokens() -> None:
    tokenizer = byte_tokenizer()
    pieces = TextPieces(tokenizer)
    ids = [*tokenizer("the")["input_ids"], tokenizer.eos_token_id, *tokenizer(" cat")["input_ids"]]
    assert "".join(pieces.push([t]) for t in ids) + pieces.flush() == "the cat"


def test_an_abandoned_stream_does_no_harm(decoder: SpeculativeDecoder) -> None:
    expected = decoder.generate("the dog", max_new_tokens=25).text
    stream = decoder.stream("a quite different and longer text", max_new_tokens=40)
    next(stream)
    assert decoder.generate("the dog", max_new_tokens=25).text == expected
    stream.close()  # type: ignore[attr-defined]
    for piece in decoder.stream("the mat", max_new_tokens=40):
        assert piece
        break
    assert decoder.generate("the dog", max_new_tokens=25).text == expected


def test_two_streams_of_one_decoder_at_once_are_refused(decoder: SpeculativeDecoder) -> None:
    first = decoder.stream("the dog", max_new_tokens=40)
    next(first)
    second = decoder.stream("the cat", max_new_tokens=40)
    start = next(second)
    with pytest.raises(RuntimeError, match="begun another text since; finish one first, or make a second decoder"):
        list(first)
    assert start + "".join(second) == decoder.generate("the cat", max_new_tokens=40).text


@pytest.mark.parametrize("end", ["next", "close", "drop"])
def test_a_run_in_flight_that_was_left_touches_nothing_of_the_next_one(decoder: SpeculativeDecoder, end: str) -> None:
    prompts = ["the cat", "a", "the dog ran to the other mat", "the mat"]
    asked = [TextRequest(prompt, max_new_tokens=30) for prompt in prompts]
    expected = decoder.generate(prompts, max_new_tokens=30).text
    first = decoder.generate_many([TextRequest("a", max_new_tokens=2), *asked], slots=4, max_length=60)
    next(first)
    second = decoder.generate_many([TextRequest("a", max_new_tokens=2), *asked], slots=4, max_length=60)
    next(second)
    if end == "next":
        with pytest.raises(RuntimeError, match="begun another text since"):
            next(first)
    elif end == "close":
        first.close()
    del first
    found = {result.index: result.text for result in second}
    assert [found[i] for i in range(1, 5)] == expected


# Text


def test_text_of_one_and_of_several(decoder: SpeculativeDecoder) -> None:
    prompts = ["the cat", "a", "the dog ran to the other mat"]
    expected = [reference(decoder, p, 30) for p in prompts]
    out = decoder.generate(prompts, max_new_tokens=30)
    assert out.text == expected
    assert [decoder.tokenizer.decode(t, skip_special_tokens=True) for t in out.tokens] == expected
    assert out.stats.mean_accepted_length_pooled > 1.5
    assert decoder.generate(prompts[0], max_new_tokens=30).text == expected[0]
    assert decoder.generate((prompts[1],), max_new_tokens=30).text == [expected[1]]
    assert decoder.generate([], max_new_tokens=30).text == []
    assert decoder.generate(prompts[0], max_new_tokens=0).text == ""


def test_stop_strings_across_token_borders(decoder: SpeculativeDecoder) -> None:
    text = reference(decoder, "the cat", 40)
    ids = decoder.tokenizer("the cat")["input_ids"]
    for start in range(3, 20, 4):
        stop = text[start : start + 3]
        if "\ufffd" in stop:
            continue
        expected = plain_text(decoder.model, ids, 40, stop_strings=stop, tokenizer=decoder.tokenizer)
        assert decoder.generate("the cat", max_new_tokens=40, stop_strings=stop).tokens == [expected]
        assert decoder.generate("the cat", max_new_tokens=40, stop_strings=["never to be seen", stop]).tokens == [
            expected
        ]
        joined = "".join(decoder.stream("the cat", max_new_tokens=40, stop_strings=stop))
        assert joined == decoder.tokenizer.decode(expected, skip_special_tokens=True)
        out = specdec.generate(
            decoder.model,
            torch.tensor([ids]),
            stop_strings=stop,
            tokenizer=decoder.tokenizer,
            max_new_tokens=40,
            eos_token_id=[],
        )
        assert out.sequences[0, len(ids) :].tolist() == expected


def test_stop_strings_that_are_looked_for_across_tokens(decoder: SpeculativeDecoder) -> None:
    """A prompt whose end is the beginning of a stop string counts, as in transformers."""
    text = reference(decoder, "the cat", 10)
    stop = "t" + text[:1]
    ids = decoder.tokenizer("the cat")["input_ids"]
    expected = plain_text(decoder.model, ids, 10, stop_strings=stop, tokenizer=decoder.tokenizer)
    assert decoder.generate("the cat", max_new_tokens=10, stop_strings=stop).tokens == [expected]


def test_chats_go_through_the_template(decoder: SpeculativeDecoder) -> None:
    chat: list[dict[str, str]] = [{"role": "user", "content": "the cat?"}, {"role": "assistant", "content": "sat"}]
    rendered = "<bos>user: the cat?\n<bos>assistant: sat\nassistant:"
    expected = reference(decoder, rendered, 20)
    assert decoder.generate(chat, max_new_tokens=20).text == expected
    both: list[Any] = [chat, "the cat"]
    assert decoder.generate(both, max_new_tokens=20).text[0] == expected
    assert "".join(decoder.stream(chat, max_new_tokens=20)) == expected


def test_a_decoder_is_usable_after_an_error(decoder: SpeculativeDecoder) -> None:
    class Broken(LogitsProcessor):
        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            self.calls += 1
            if self.calls > 5:
                raise RuntimeError("broken processor")
            return scores

    expected = decoder.generate("the dog", max_new_tokens=25).text
    implementation = decoder.model.config._attn_implementation
    with pytest.raises(RuntimeError, match="broken processor"):
        decoder.generate("the cat", max_new_tokens=25, logits_processor=LogitsProcessorList([Broken()]))
    assert decoder.model.config._attn_implementation == implementation
    assert decoder.generate("the dog", max_new_tokens=25).text == expected
    with pytest.raises(ValueError, match="tokens, but LlamaForCausalLM has 256 positions"):
        decoder.generate("the cat", max_new_tokens=2000)
    assert decoder.generate("the dog", max_new_tokens=25).text == expected == reference(decoder, "the dog", 25)


def test_one_drafter_serves_two_decoders(decoder: SpeculativeDecoder) -> None:
    other = SpeculativeDecoder(make_model("llama", seed=5, vocab_size=len(decoder.tokenizer)), decoder.tokenizer)
    shared = SpeculativeDecoder(other.model, decoder.tokenizer, drafter=decoder.engine.drafter)
    streams = [decoder.stream("the cat", max_new_tokens=30), shared.stream("the dog", max_new_tokens=30)]
    texts = ["", ""]
    for pieces in zip(*streams, strict=False):
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
    texts = [text + "".join(stream) for text, stream in zip(texts, streams, strict=True)]
    expected = [decoder.generate("the cat", max_new_tokens=30).text, other.generate("the dog", max_new_tokens=30).text]
    assert [text[:10] for text in texts] == [str(text)[:10] for text in expected]


# Many


@pytest.mark.parametrize("slots", [1, 2, 5, 32])
def test_many_requests_through_few_slots(decoder: SpeculativeDecoder, slots: int) -> None:
    prompts = ["the cat", "a", "the dog ran", "mat", "the other", "and the"]
    requests: list[str | TextRequest] = [
        TextRequest(prompt, max_new_tokens=4 + 7 * (i % 3), sampling=SamplingParams(temperature=float(i % 2), seed=i))
        for i, prompt in enumerate(prompts)
    ]
    requests[4] = TextRequest("the other", max_new_tokens=0)
    stats = specdec.DecodingStats()
    results = list(decoder.generate_many(iter(requests), slots=slots, stats=stats))
    assert sorted(r.index for r in results) == list(range(6))
    for result in results:
        request = requests[result.index]
        assert isinstance(request, TextRequest)
        count = request.max_new_tokens or 0
        alone = decoder.generate(str(request.prompt), max_new_tokens=count, sampling=request.sampling)
        assert result.text == alone.text
        assert [result.tokens] == alone.tokens
        assert result.stats.new_tokens == len(result.tokens)
    assert stats.new_tokens == sum(len(r.tokens) for r in results)


def test_many_with_stops_and_processors_of_their_own(decoder: SpeculativeDecoder) -> None:
    text = reference(decoder, "the cat", 30)
    stop = next(text[i : i + 2] for i in range(2, 20) if "\ufffd" not in text[i : i + 2])
    requests: list[Any] = [
        TextRequest("the cat", 30, stop_strings=stop),
        TextRequest("the cat", 30, logits_processor=LogitsProcessorList([NoRepeatNGramLogitsProcessor(1)])),
        "the cat",
        [{"role": "user", "content": "the cat?"}],
    ]
    results = sorted(decoder.generate_many(requests, slots=2), key=lambda r: r.index)
    assert results[0].text == decoder.generate("the cat", max_new_tokens=30, stop_strings=stop).text
    assert len(set(results[1].tokens)) == 30
    assert results[2].text.startswith(text[:20])
    assert results[3].tokens == decoder.generate([{"role": "user", "content": "the cat?"}]).tokens[0]


def test_many_of_nothing(decoder: SpeculativeDecoder) -> None:
    assert list(decoder.generate_many([])) == []
    chat = [{"role": "user", "content": "class A:"}]
    for one in ("class A:", {"prompt": "class A:"}, TextRequest("class A:"), [5, 6, 7], chat, b"class A:"):
        with pytest.raises(ValueError, match=r"several requests, got one: .*; give a list of it, or use generate"):
            decoder.generate_many(one)  # type: ignore[arg-type]


def test_many_that_do_not_say_how_long_and_how(decoder: SpeculativeDecoder) -> None:
    """Prompts, mappings and requests without a length or a way to choose tokens take the run's; what is said stays."""
    sampled, other = SamplingParams(temperature=1.0, seed=3), SamplingParams(temperature=0.7, seed=5)
    ids = decoder.tokenizer("the cat")["input_ids"]
    chat = [{"role": "user", "content": "the cat"}]
    requests: list[Any] = ["the cat", ids, chat, {"prompt": "the cat"}, TextRequest("the cat")]
    requests += [{"prompt": "the cat", "max_new_tokens": 4}, TextRequest("the cat", sampling=other)]
    requests += [{"prompt": "the cat", "sampling": {"seed": 9}}, {"prompt": "the cat", "max_new_tokens": None}]
    made = decoder.generate_many(requests, max_new_tokens=9, sampling=sampled)
    results = sorted(made, key=lambda r: r.index)
    (wanted,) = decoder.generate(["the cat"], max_new_tokens=9, sampling=sampled).tokens
    (of_chat,) = decoder.generate([chat], max_new_tokens=9, sampling=sampled).tokens
    for index in (0, 1, 3, 4, 8):
        assert results[index].tokens == wanted
    assert results[2].tokens == of_chat
    assert results[5].tokens == wanted[:4]
    for index, sampling in ((6, other), (7, SamplingParams(seed=9))):
        assert [results[index].tokens] == decoder.generate(["the cat"], max_new_tokens=9, sampling=sampling).tokens
    assert len({tuple(results[index].tokens) for index in (0, 6, 7)}) == 3


def test_many_write_128_tokens_where_nobody_says(decoder: SpeculativeDecoder) -> None:
    (result,) = decoder.generate_many(["the cat"])
    assert result.tokens == decoder.generate(["the cat"], max_new_tokens=128).tokens[0]


def test_results_come_as_they_finish(decoder: SpeculativeDecoder) -> None:
    def requests() -> Iterator[TextRequest]:
        yield TextRequest("the cat", 40)
        yield TextRequest("the dog", 2)
        yield TextRequest("the mat", 2)

    order = [r.index for r in decoder.generate_many(requests(), slots=2)]
    assert order == [1, 2, 0]


def test_many_that_have_not_come_yet(decoder: SpeculativeDecoder) -> None:
    """None counts as no request."""
    turns: list[Turn] = []
    asked = TextRequest("the cat", 6)
    given = [None, asked, None, None, "a", None]
    first, second = sorted(decoder.generate_many(given, slots=2, watch=turns.append), key=lambda r: r.index)
    assert (first.index, first.prompt, first.error) == (0, asked.prompt, None)
    assert first.text == decoder.generate("the cat", max_new_tokens=6).text
    assert (second.index, second.prompt, second.error) == (1, "a", None)
    assert {number for turn in turns for number, _, _ in turn.running} == {0, 1}


def test_many_as_mappings_with_all_that_comes_back(decoder: SpeculativeDecoder) -> None:
    streamer = Keep()
    requests: list[Any] = [
        {"prompt": "the cat", "max_new_tokens": 9, "sampling": {"temperature": 1.0, "seed": 3}, "streamer": streamer},
        {"prompt": decoder.tokenizer("the dog")["input_ids"], "max_new_tokens": 4},
    ]
    first, second = sorted(decoder.generate_many(requests), key=lambda r: r.index)
    alone = decoder.generate("the cat", max_new_tokens=9, sampling=SamplingParams(temperature=1.0, seed=3))
    assert (first.prompt, first.text, first.error) == ("the cat", alone.text, None)
    assert first.sequences.tolist() == [decoder.tokenizer("the cat")["input_ids"] + alone.tokens[0]]
    assert [t for piece in streamer.pieces for t in piece] == first.sequences[0].tolist()
    assert streamer.ended == 1
    assert second.text == decoder.generate("the dog", max_new_tokens=4).text


def test_many_in_little_memory(decoder: SpeculativeDecoder) -> None:
    """Long prompts that share a beginning, in pages for hardly two of them."""
    requests = [TextRequest("the cat sat on the mat and the dog ran " * 2 + end, 30) for end in ("a", "the", "ran", "")]
    engine = decoder.engine
    bytes_for = 2 * 96 * engine.target.kv_bytes
    bytes_for += own_kv_bytes(engine.drafter, 32, engine.target.max_positions, engine.target.device)
    results = sorted(decoder.generate_many(requests, page=16, memory=bytes_for, rows=32), key=lambda r: r.index)
    alone = decoder.generate([str(r.prompt) for r in requests], max_new_tokens=30)
    assert [r.text for r in results] == alone.text
    assert sum(r.stats.preemptions for r in results) > 0
    assert sum(r.stats.shared_tokens for r in results) > 0


def test_cancelling_one_of_many(decoder: SpeculativeDecoder) -> None:
    results = decoder.generate_many([TextRequest("the cat", 60), TextRequest("the dog", 3), "a"], slots=2)
    results.cancel(2)  # not taken yet
    first = next(results)
    assert first.index == 1
    results.cancel(1)  # has ended
    results.cancel(0)
    rest = sorted(results, key=lambda r: r.index)
    assert [r.index for r in rest] == [0, 2]
    assert all(isinstance(r.error, CancelledError) for r in rest)
    assert 0 < len(rest[0].tokens) < 60
    assert reference(decoder, "the cat", 60).startswith(rest[0].text)


def test_breaking_off_many_frees_the_memory(decoder: SpeculativeDecoder) -> None:
    for result in decoder.generate_many([TextRequest("the cat", 60), TextRequest("the dog", 3)]):
        assert result.index == 1
        break
    gc.collect()
    assert decoder.engine.target.cache.nbytes == 0
    results = decoder.generate_many([TextRequest("the cat", 60), TextRequest("the dog", 3)])
    next(results)
    expected = decoder.generate("the dog", max_new_tokens=25).text
    with pytest.raises(RuntimeError, match="begun another text since"):
        list(results)
    assert decoder.generate("the dog", max_new_tokens=25).text == expected


def test_memory_does_not_grow_with_the_queue(decoder: SpeculativeDecoder) -> None:
    """What was served is forgotten: neither requests nor their counts are kept."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    def requests() -> Iterator[TextRequest]:
        for _ in range(60):
            streamer = Keep()
            alive.add(streamer)
            yield TextRequest("the", 2, streamer=streamer)

    most = 0
    for number, _ in enumerate(decoder.generate_many(requests(), slots=3)):
        if number % 20 == 19:  # looking takes long
            gc.collect()
            most = max(most, len(alive))
    assert most <= 8


# Faces


def test_drafters_by_name_mapping_path_and_object(model: PreTrainedModel) -> None:
    expected = plain_text(model, PROMPT, 15)
    path = "specdec.drafters.ngram.NGram"
    specs: list[Any] = ["ngram", {"_target_": path, "max_ngram": 2}, path, specdec.engine.make_drafter("ngram"), model]
    for spec in specs:
        out = specdec.generate(model, IDS, drafter=spec, max_new_tokens=15, eos_token_id=[])
        assert out.sequences[0, 5:].tolist() == expected


def test_trees_by_name_mapping_and_object(model: PreTrainedModel) -> None:
    from specdec.tree.static import chain

    expected = plain_text(model, PROMPT, 15)
    trees: list[Any] = [
        None,
        "chain",
        "static",
        {"_target_": "specdec.tree.best_first.BestFirst", "depth": 2},
        chain(3),
    ]
    for tree in trees:
        out = specdec.generate(model, IDS, drafter=model, tree=tree, max_new_tokens=15, eos_token_id=[])
        assert out.sequences[0, 5:].tolist() == expected


@pytest.mark.parametrize("backend", ["naive", "packed", "sdpa"])
@pytest.mark.parametrize("acceptance", ["coupled", "rejection"])
def test_backends_and_rules(model: PreTrainedModel, drafters: Any, backend: str, acceptance: str) -> None:
    out = specdec.generate(
        model,
        IDS,
        **drafters["best_first"],
        backend=backend,
        acceptance=acceptance,
        max_new_tokens=20,
        eos_token_id=[],
    )
    assert out.sequences[0, 5:].tolist() == plain_text(model, PROMPT, 20)


def test_public_names() -> None:
    assert all(hasattr(specdec, name) for name in specdec.__all__)


def test_a_tokenizer_that_adds_bos(decoder: SpeculativeDecoder) -> None:
    class WithBos:
        """What LlamaTokenizer does."""

        chat_template = None

        def __init__(self, inner: PreTrainedTokenizerBase):
            self._inner = inner

        def __call__(self, text: str, **settings: Any) -> dict[str, list[int]]:
            return {"input_ids": [1, *self._inner(text, **settings)["input_ids"]]}

        def decode(self, *args: Any, **kwargs: Any) -> str:
            return self._inner.decode(*args, **kwargs)

    other = SpeculativeDecoder(decoder.model, WithBos(decoder.tokenizer))
    out = other.generate(["", "the"], max_new_tokens=5)  # an empty text is one token here
    assert out.tokens[0] == plain_text(decoder.model, [1], 5)
