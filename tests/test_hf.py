"""`model.generate(custom_generate=specdec.hf.generate)`: the text of plain `generate`, and nothing ignored."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TextIteratorStreamer,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.generation.streamers import BaseStreamer

import specdec
from specdec import SamplingParams, hf
from specdec.hf import to_sampling

from .models import make_model, noisy_copy, ragged_batch

LEFT = (True, True, True)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_model("llama")


@pytest.fixture(scope="module")
def small(model: PreTrainedModel) -> PreTrainedModel:
    return noisy_copy(model, 0.1)


def settings(**changes: Any) -> dict[str, Any]:
    _, mask, _ = ragged_batch((9, 4, 12), left=LEFT)
    usual = {"attention_mask": mask, "max_new_tokens": 20, "do_sample": False, "eos_token_id": 13, "pad_token_id": 0}
    return {**usual, **changes}


IDS = ragged_batch((9, 4, 12), left=LEFT)[0]


def both(model: PreTrainedModel, ids: Tensor = IDS, drafter: Any = "ngram", **changes: Any) -> tuple[Tensor, Tensor]:
    plain = model.generate(ids, **settings(**changes))
    ours = model.generate(ids, **settings(**changes), custom_generate=specdec.hf.generate, drafter=drafter)
    return ours, plain


@pytest.mark.parametrize("drafter", ["none", "ngram", "model"])
def test_greedy_batch_with_left_padding(model: PreTrainedModel, small: PreTrainedModel, drafter: str) -> None:
    chosen = small if drafter == "model" else drafter
    ours, plain = both(model, drafter=chosen)
    assert ours.tolist() == plain.tolist()
    assert 13 in plain[0, 12:-1]  # one row ended early, and was padded
    ours, plain = both(model, ids=IDS[2:], drafter=chosen, attention_mask=None, eos_token_id=[13, 77])
    assert ours.tolist() == plain.tolist()


def test_tree_acceptance_and_return_dict(model: PreTrainedModel, small: PreTrainedModel) -> None:
    plain = model.generate(IDS, **settings(return_dict_in_generate=True))
    ours = model.generate(
        IDS,
        **settings(return_dict_in_generate=True),
        custom_generate=specdec.hf.generate,
        drafter=small,
        tree="best_first",
        acceptance="rejection",
    )
    assert isinstance(ours, GenerateDecoderOnlyOutput)
    assert ours.sequences.tolist() == plain.sequences.tolist()
    assert ours.stats.mean_accepted_length_pooled > 1.5


@pytest.mark.parametrize(
    "setting",
    [
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 15},
        {"min_length": 25},
        {"bad_words_ids": [[13], [5, 6]]},
        {"encoder_repetition_penalty": 1.2},
        {"encoder_no_repeat_ngram_size": 1},
        {"sequence_bias": {(5,): 3.0}},
        {"suppress_tokens": [2, 3]},
        {"begin_suppress_tokens": [53]},
        {"forced_eos_token_id": 13},
        {"exponential_decay_length_penalty": (3, 1.5)},
        {"repetition_penalty": 1.3, "sequence_bias": {(5,): 3.0}, "renormalize_logits": True},
        {"prefix_allowed_tokens_fn": lambda row, text: [5 + row, 6 + row, 7 + row, int(text[-1])]},
        {"max_length": 18, "max_new_tokens": None},
    ],
    ids=lambda setting: "+".join(setting),
)
def test_processors_of_transformers(model: PreTrainedModel, small: PreTrainedModel, setting: dict[str, Any]) -> None:
    ours, plain = both(model, drafter=small, **setting)
    assert ours.tolist() == plain.tolist()


def test_processors_and_criteria_of_the_user(model: PreTrainedModel, small: PreTrainedModel) -> None:
    class Lift(LogitsProcessor):
        """The next token depends on the last two and on the length, padding included."""

        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            lifted = (input_ids[:, -1] + input_ids[:, -2] + input_ids.shape[1]) % 80
            return scores.scatter_add(1, lifted[:, None], torch.full_like(scores[:, :1], 4.0))

    class Below(StoppingCriteria):
        """Ends after two small tokens and not before the sixteenth place."""

        def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
            return (input_ids[:, -2:] < 60).all(-1) & (input_ids.shape[1] > 16)

    for drafter in ("ngram", small):
        ours, plain = both(
            model,
            drafter=drafter,
            logits_processor=LogitsProcessorList([Lift()]),
            stopping_criteria=StoppingCriteriaList([Below()]),
        )
        assert ours.tolist() == plain.tolist()
        assert ours.shape[1] < 32


def test_sampling_is_that_of_sampling_params(model: PreTrainedModel, small: PreTrainedModel) -> None:
    ids, mask, _ = ragged_batch((9, 4, 12), left=LEFT)
    out = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=20,
        do_sample=True,
        temperature=0.8,
        top_k=30,
        top_p=0.9,
        min_p=0.01,
        pad_token_id=0,
        custom_generate=specdec.hf.generate,
        drafter=small,
        seed=5,
    )
    params = [SamplingParams(temperature=0.8, top_k=30, top_p=0.9, min_p=0.01, seed=5 + row) for row in range(3)]
    expected = specdec.generate(model, ids, mask, drafter="none", sampling=params, max_new_tokens=20, eos_token_id=[])
    assert out.tolist() == expected.sequences.tolist()


def test_seeds(model: PreTrainedModel) -> None:
    def run(**changes: Any) -> list[list[int]]:
        changes = {"do_sample": True, "eos_token_id": None, "attention_mask": None, "max_new_tokens": 12, **changes}
        out: Tensor = model.generate(IDS[2:], **settings(**changes), custom_generate=specdec.hf.generate)
        return out.tolist()

    torch.manual_seed(3)
    first, second = run(), run()
    torch.manual_seed(3)
    assert first != second  # as two calls of `generate` differ
    assert (run(), run()) == (first, second)
    assert run(seed=1) == run(seed=1) != run(seed=2)
    several = run(seed=1, num_return_sequences=3)
    assert len({tuple(row) for row in several}) == 3
    assert several[0] == run(seed=1)[0]


def test_top_k_of_the_default_config_is_taken_over() -> None:
    assert to_sampling([TopKLogitsWarper(50)], True) == (SamplingParams(temperature=1.0, top_k=50), [])


@pytest.mark.parametrize(
    ("processors", "do_sample", "padded", "params", "left"),
    [
        ([], False, False, {}, 0),
        ([], True, False, {"temperature": 1.0}, 0),
        (
            [TemperatureLogitsWarper(0.5), TopKLogitsWarper(9), TopPLogitsWarper(0.5), MinPLogitsWarper(0.1)],
            True,
            False,
            {"temperature": 0.5, "top_k": 9, "top_p": 0.5, "min_p": 0.1},
            0,
        ),
        ([TopPLogitsWarper(0.5), TopKLogitsWarper(9)], True, False, {"temperature": 1.0, "top_k": 9}, 1),
        ([TemperatureLogitsWarper(0.5), TypicalLogitsWarper(0.5)], True, False, {"temperature": 1.0}, 2),
        ([TopKLogitsWarper(2, min_tokens_to_keep=9)], True, False, {"temperature": 1.0, "top_k": 9}, 0),
        ([TopPLogitsWarper(0.5, min_tokens_to_keep=2)], True, False, {"temperature": 1.0}, 1),
        ([TopKLogitsWarper(9, filter_value=-9.0)], True, False, {"temperature": 1.0}, 1),
        ([TemperatureLogitsWarper(0.5)], False, False, {}, 1),
        (
            [RepetitionPenaltyLogitsProcessor(1.5), NoRepeatNGramLogitsProcessor(2), TemperatureLogitsWarper(0.5)],
            True,
            False,
            {"temperature": 0.5, "repetition_penalty": 1.5},
            1,
        ),
        ([RepetitionPenaltyLogitsProcessor(1.5)], False, True, {}, 1),  # it would count the padding
        ([RepetitionPenaltyLogitsProcessor(1.5, prompt_ignore_length=3)], False, False, {}, 1),
        ([NoRepeatNGramLogitsProcessor(2), RepetitionPenaltyLogitsProcessor(1.5)], False, False, {}, 2),
    ],
)
def test_what_becomes_of_processors(
    processors: list[LogitsProcessor], do_sample: bool, padded: bool, params: dict[str, Any], left: int
) -> None:
    sampling, rest = to_sampling(processors, do_sample, 4, padded)
    assert sampling == SamplingParams(**params, seed=4)
    assert rest == processors[len(processors) - left :] or rest == processors[1 : 1 + left] or rest == processors[:left]
    assert len(rest) == left


def test_a_streamer_gets_the_text_and_an_end(model: PreTrainedModel) -> None:
    """transformers does not hand it to a callable; a reader would wait for ever."""

    class Keep(BaseStreamer):
        def __init__(self) -> None:
            self.tokens: list[int] = []
            self.ended = 0

        def put(self, value: Tensor) -> None:
            self.tokens += value.flatten().tolist()

        def end(self) -> None:
            self.ended += 1

    ours, plain = Keep(), Keep()
    row = {"attention_mask": None}
    model.generate(IDS[2:], **settings(**row), streamer=plain)
    out = model.generate(IDS[2:], **settings(**row), streamer=ours, custom_generate=specdec.hf.generate)
    assert ours.tokens == plain.tokens == out[0].tolist()
    assert ours.ended == 1


def test_an_iterator_streamer_ends_after_an_error(model: PreTrainedModel) -> None:
    class Words:
        def decode(self, tokens: list[int], **_: Any) -> str:
            return " ".join(map(str, tokens)) + "\n"

    class Broken(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            if input_ids.shape[1] > 20:
                raise RuntimeError("broken")
            return scores

    streamer = TextIteratorStreamer(Words(), timeout=30)
    errors = []

    def run() -> None:
        try:
            model.generate(
                IDS[2:],
                **settings(attention_mask=None, logits_processor=LogitsProcessorList([Broken()])),
                streamer=streamer,
                custom_generate=specdec.hf.generate,
            )
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert errors == ["broken"]
    assert pieces


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_beams": 2}, "beam search cannot be combined with specdec; use greedy decoding or sampling"),
        ({"num_beams": 2, "do_sample": True}, "beam sample cannot be combined with specdec"),
        ({"prompt_lookup_num_tokens": 3}, "transformers' own speculation; use drafter="),
        ({"guidance_scale": 1.5}, "UnbatchedClassifierFreeGuidanceLogitsProcessor keeps a state"),
        ({"output_scores": True, "return_dict_in_generate": True}, "specdec does not return output_scores"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "specdec does not return output_attentions"),
        ({"drafter": "ngrm"}, "unknown drafter 'ngrm'. Did you mean 'ngram'"),
        ({"max_new_tokens": 200}, "make 212 tokens, but LlamaForCausalLM has 128 positions"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_what_has_no_meaning_here_is_refused(model: PreTrainedModel, setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate(IDS, **settings(**setting), custom_generate=specdec.hf.generate)


def test_inputs_that_have_no_meaning_here_are_refused(model: PreTrainedModel, small: PreTrainedModel) -> None:
    row = settings(attention_mask=None, custom_generate=specdec.hf.generate)
    with pytest.raises(ValueError, match="use drafter="):
        model.generate(IDS[2:], assistant_model=small, **row)
    cache = model(IDS[2:, :5], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="past_key_values cannot be used"):
        model.generate(IDS[2:], past_key_values=cache, **row)
    with pytest.raises(ValueError, match="position_ids other than those of the attention mask"):
        model.generate(IDS[2:], position_ids=torch.arange(12)[None] + 3, **row)
    with pytest.raises(ValueError, match=r"cannot hand inputs_embeds to the model|input_ids"):
        model.generate(inputs_embeds=model.get_input_embeddings()(IDS[2:]), **row)


def test_a_quantized_cache_is_refused() -> None:
    with pytest.raises(ValueError, match="cache_implementation='quantized' cannot be honoured"):
        hf._check_config(GenerationConfig(cache_implementation="quantized"), {})


def test_a_generation_config_object(model: PreTrainedModel) -> None:
    config = GenerationConfig(
        max_new_tokens=7, do_sample=False, pad_token_id=0, eos_token_id=None, no_repeat_ngram_size=2
    )
    plain = model.generate(IDS[2:], config)
    ours = model.generate(IDS[2:], config, custom_generate=specdec.hf.generate, drafter="ngram")
    assert ours.tolist() == plain.tolist()


def test_specdec_hf_is_there_after_importing_specdec() -> None:
    assert callable(specdec.hf.generate)
