"""What a user can get wrong: a ValueError that says what was got, what is expected and what to do, before the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.generation.streamers import BaseStreamer

import specdec
from specdec import SamplingParams, SpeculativeDecoder, TextRequest, TokenTree
from specdec.core import DraftNeeds
from specdec.drafters.draft_model import DraftModel

from .models import byte_tokenizer, make_model, plain_text

IDS = torch.tensor([[5, 6, 7]])


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_model("llama", max_position_embeddings=256)


@pytest.fixture(scope="module")
def decoder() -> SpeculativeDecoder:
    tokenizer = byte_tokenizer()
    return SpeculativeDecoder(make_model("llama", vocab_size=len(tokenizer)), tokenizer)


def ids(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(list(rows))


@pytest.mark.parametrize(
    ("input_ids", "mask", "message"),
    [
        ([[1, 2]], None, r"input_ids is \[\[1, 2\]\]; expected integers of shape \[batch, length\]"),
        (torch.tensor([1, 2]), None, r"input_ids is torch.int64 of shape \[2\]; expected integers of shape"),
        (torch.ones(1, 2), None, r"input_ids is torch.float32 of shape \[1, 2\]; expected integers"),
        (torch.ones(1, 2, dtype=torch.bool), None, r"input_ids is torch.bool of shape \[1, 2\]; expected integers"),
        (torch.ones(0, 2, dtype=torch.int64), None, "input_ids has no rows; give at least one prompt"),
        (torch.ones(2, 0, dtype=torch.int64), None, "the prompt in row 0 is empty; give at least one token"),
        (ids([1, 2], [3, 4]), ids([1, 1], [0, 0]), "the prompt in row 1 is empty; give at least one token"),
        (ids([1, 2]), ids([1, 1, 1]), r"attention_mask has shape \[1, 3\]; expected input_ids' \[1, 2\]"),
        (ids([1, 2]), torch.ones(1, 1, 2, 2), r"attention_mask has shape \[1, 1, 2, 2\]; expected input_ids' \[1, 2\]"),
        (ids([1, 2], [3, 80]), None, "row 1 has token id 80; the model's ids go from 0 to 79"),
        (ids([1, -100]), None, "row 0 has token id -100; the model's ids go from 0 to 79"),
    ],
)
def test_ids_and_masks(model: PreTrainedModel, input_ids: Any, mask: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        specdec.generate(model, input_ids, mask)


def test_ids_outside_the_vocabulary_that_are_masked_do_not_matter(model: PreTrainedModel) -> None:
    out = specdec.generate(model, ids([-100, 5, 6]), ids([0, 1, 1]), max_new_tokens=3, eos_token_id=[])
    assert out.sequences[0, 3:].tolist() == plain_text(model, [5, 6], 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens is -1; expected an integer of at least 0"),
        ({"max_new_tokens": 2.5}, r"max_new_tokens is 2\.5; expected an integer"),
        ({"max_new_tokens": True}, "max_new_tokens is True; expected an integer"),
        ({"max_new_tokens": None}, "max_new_tokens is None; expected an integer"),
        (
            {"max_new_tokens": 254},
            "make 257 tokens, but LlamaForCausalLM has 256 positions; shorten the prompt or lower",
        ),
        ({"drafter": "ngramm"}, "unknown drafter 'ngramm'. Did you mean 'ngram'[?] Known: .*ngram.*none"),
        ({"drafter": "xyz"}, "unknown drafter 'xyz'. Known: "),
        ({"tree": "chian"}, "unknown tree 'chian'. Did you mean 'chain'"),
        ({"drafter": "draft_model", "tree": 5}, "tree 5 has no depth; give a name in conf/tree"),
        ({"acceptance": "copled"}, "unknown acceptance 'copled'. Did you mean 'coupled'"),
        ({"acceptance": 3}, "acceptance 3 is no acceptance rule"),
        ({"backend": "cuda"}, "unknown attention backend 'cuda'; expected one of: auto"),
        ({"drafter": "none", "tree": "chain"}, "drafter 'none' takes no tree; leave `tree` out"),
        ({"drafter": "tiny-eagle"}, "holds a head, not a model; give it to its drafter: drafter=eagle, head="),
        ({"drafter": "/nowhere/at/all"}, "model folder '/nowhere/at/all' does not exist; give a folder, a hub id"),
        ({"drafter": Path("nowhere/at/all")}, "model folder 'nowhere/at/all' does not exist"),
        ({"drafter": 7}, "drafter 7 has no needs; see specdec.core.Drafter"),
        ({"drafter": None}, "drafter None has no needs"),
        ({"drafter": {"max_ngram": 2}}, r"drafter has no _target_; got the keys max_ngram"),
        ({"drafter": {}}, r"drafter has no _target_; got the keys \(none\)"),
        (
            {"drafter": {"_target_": "specdec.drafters.ngram.NGram", "max_ngrm": 2}},
            "max_ngrm.*Did you mean 'max_ngram'",
        ),
        ({"drafter": {"_target_": "specdec.drafters.ngram.NGram", "max_ngram": 0}}, "ngram needs 1 <= min_ngram"),
        ({"drafter": {"_target_": "specdec.drafters.draft_model.DraftModel"}}, "needs the setting 'model'"),
        ({"drafter": "specdec.drafters.ngram.NGrem"}, "_target_ 'specdec.drafters.ngram.NGrem' was not found"),
        ({"drafter": "specdec.drafters.nothing.There"}, "_target_ 'specdec.drafters.nothing.There' was not found"),
        (
            {"drafter": "os.system"},
            r"_target_ 'os.system' would run code from outside specdec; .*allow_targets=\['os.system'\]",
        ),
        ({"drafter": {"_target_": "os.system", "command": "true"}}, "would run code from outside specdec"),
        ({"drafter": "specdecoy.Drafter"}, "would run code from outside specdec"),
        ({"sampling": {"temperature": 1.0}}, r"sampling is \{'temperature': 1\.0\}; expected specdec\.SamplingParams"),
        (
            {"sampling": [SamplingParams()] * 2},
            r"sampling has 2 entries; expected one SamplingParams, or one per row \(1\)",
        ),
        ({"sampling": 1.0}, "sampling is 1.0; expected specdec.SamplingParams"),
        ({"stop_strings": "a"}, "stop_strings needs the tokenizer; pass tokenizer="),
        ({"stop_strings": ["a", ""]}, "a stop string is empty; every text would end at once"),
        ({"eos_token_id": 80}, "eos_token_id 80 is not in the vocabulary; the model's ids go from 0 to 79"),
        ({"eos_token_id": [3, -2]}, "eos_token_id -2 is not in the vocabulary"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'; expected ids"),
        ({"eos_token_id": True}, "eos_token_id is True; expected ids"),
        ({"pad_token_id": "<pad>"}, "pad_token_id is '<pad>'; expected an id"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_settings(model: PreTrainedModel, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        specdec.generate(model, IDS, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, r"sampling.temperature is -0\.1; expected at least 0"),
        ({"temperature": float("nan")}, "sampling.temperature is nan; expected a finite number"),
        ({"temperature": "hot"}, "sampling.temperature is 'hot'; expected a finite number"),
        ({"top_k": -1}, "sampling.top_k is -1; expected at least 0"),
        ({"top_k": 2.0}, r"sampling.top_k is 2\.0; expected an integer"),
        ({"top_p": 0.0}, r"sampling.top_p is 0\.0; expected in \(0, 1\]"),
        ({"min_p": 1.0}, r"sampling.min_p is 1\.0; expected in \[0, 1\)"),
        ({"repetition_penalty": 0}, "sampling.repetition_penalty is 0; expected above 0"),
        ({"seed": 0.5}, r"sampling.seed is 0\.5; expected an integer"),
    ],
)
def test_sampling_params(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParams(**settings)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"temperature": 0.7}, r"argument 'temperature'; give sampling=SamplingParams\(temperature=0.7\)"),
        ({"max_new_tokens": 4, "top_k": 3}, r"SamplingParams\(top_k=3\)"),
        ({"do_sample": True}, r"argument 'do_sample'; give sampling=SamplingParams\(temperature=1.0\)"),
        ({"temprature": 0.7}, "unexpected keyword argument 'temprature'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_sampling_settings_have_a_place(decoder: SpeculativeDecoder, given: dict[str, Any], told: str) -> None:
    with pytest.raises(TypeError, match=told):
        decoder.generate("abc", **given)
    with pytest.raises(TypeError, match=told):
        decoder.stream("abc", **given)
    with pytest.raises(TypeError, match=told):
        specdec.generate(decoder.model, IDS, **given)


def test_unknown_keys_of_sampling_params() -> None:
    with pytest.raises(ValueError, match="unknown sampling setting 'temp'; expected one of: temperature, top_k"):
        SamplingParams.from_dict({"temp": 1.0})


def test_a_draft_model_of_another_vocabulary(model: PreTrainedModel) -> None:
    with pytest.raises(
        ValueError, match="the drafter has a vocabulary of 300 tokens, the target of 80; use a drafter made"
    ):
        specdec.generate(model, IDS, drafter=make_model("llama", vocab_size=300), max_new_tokens=3)


class Stub:
    """A drafter with nothing wrong but what a test sets."""

    def __init__(self, **settings: Any):
        self.needs = DraftNeeds(max_nodes=2)
        self.__dict__ |= settings

    def open(self, capacity: int, max_length: int, device: torch.device) -> None:
        return None

    def start(self, *_: Any) -> None:
        pass

    def propose(self, state: None, roots: torch.Tensor, noise: Any) -> TokenTree:
        return TokenTree.roots(roots)

    def observe(self, *_: Any) -> None:
        pass


def test_a_drafter_made_for_another_hidden_size(model: PreTrainedModel) -> None:
    assert specdec.generate(model, IDS, drafter=Stub(hidden_size=32), max_new_tokens=2)
    with pytest.raises(
        ValueError, match="the drafter was made for hidden states of 4096, the target has 32; use one made"
    ):
        specdec.generate(model, IDS, drafter=Stub(hidden_size=4096), max_new_tokens=2)


def test_a_drafter_that_wants_layers_the_target_has_not(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="hidden layer 30 asked of LlamaForCausalLM; expected -1 or 0 to 1"):
        specdec.generate(model, IDS, drafter=Stub(needs=DraftNeeds(2, (30,))), max_new_tokens=2)


def test_a_drafter_without_a_method(model: PreTrainedModel) -> None:
    class Half:
        needs = DraftNeeds(max_nodes=2)

        def open(self) -> None: ...

    with pytest.raises(ValueError, match=r"has no start; see specdec\.core\.Drafter for what a drafter needs"):
        specdec.generate(model, IDS, drafter=Half())


def test_a_tree_for_an_object_that_has_one(model: PreTrainedModel) -> None:
    drafter = specdec.engine.make_drafter("ngram")
    with pytest.raises(ValueError, match="drafter is an object already; tree cannot be set on it"):
        specdec.generate(model, IDS, drafter=drafter, tree="chain")


def test_a_streamer_for_several_rows(model: PreTrainedModel) -> None:
    class Never(BaseStreamer):
        def put(self, value: Any) -> None:
            raise AssertionError("nothing should come")

        def end(self) -> None:
            raise AssertionError("nothing should come")

    with pytest.raises(ValueError, match="a streamer takes one row at a time; got 2 rows"):
        specdec.generate(model, IDS.repeat(2, 1), streamer=Never(), max_new_tokens=2)


def test_processors_with_a_state(model: PreTrainedModel) -> None:
    stateful = [
        UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, model),
        SynthIDTextWatermarkLogitsProcessor(5, [1, 2, 3, 4], 64, 0, 16, torch.device("cpu")),
    ]
    for processor in stateful:
        with pytest.raises(ValueError, match=f"{type(processor).__name__} keeps a state from token to token"):
            specdec.generate(model, IDS, logits_processor=LogitsProcessorList([processor]), max_new_tokens=2)


def test_text(decoder: SpeculativeDecoder) -> None:
    with pytest.raises(ValueError, match="a prompt is empty; give at least one token"):
        decoder.generate("")
    with pytest.raises(ValueError, match="a prompt is empty"):
        decoder.generate(["the", ""])
    with pytest.raises(ValueError, match="a prompt is empty"):
        decoder.stream("")  # at once, not at the first piece
    with pytest.raises(ValueError, match="a stop string is empty"):
        decoder.stream("the", stop_strings=[""])
    with pytest.raises(ValueError, match="max_new_tokens is -3"):
        decoder.stream("the", max_new_tokens=-3)
    with pytest.raises(ValueError, match="has 128 positions"):
        decoder.generate("the", max_new_tokens=128)
    (result,) = decoder.generate_many([TextRequest("the", max_new_tokens=128)])
    assert "has 128 positions" in str(result.error)
    with pytest.raises(ValueError, match="slots is 0; expected an integer of at least 1"):
        decoder.generate_many(["the"], slots=0)
    with pytest.raises(ValueError, match=r"a prompt is 7 \(int\); expected a string, a chat .* or a list of token"):
        decoder.generate([7])  # type: ignore[arg-type]
    (result,) = decoder.generate_many([7.5])  # type: ignore[list-item]
    assert "a request is 7.5 (float); expected a string, a chat" in str(result.error)


def test_what_is_wrong_with_one_of_many(decoder: SpeculativeDecoder) -> None:
    """A result with an error, and the others as ever."""
    wrong: list[Any] = [
        ("", "a prompt is empty"),
        ({"prompt": "the", "max_tokens": 3}, "unknown key 'max_tokens'; did you mean 'max_new_tokens'?"),
        ({"max_new_tokens": 3}, "a request has no prompt, but max_new_tokens"),
        ({"prompt": "the", "sampling": {"temprature": 1.0}}, "unknown sampling setting 'temprature'"),
        ({"prompt": "the", "sampling": 0.7}, "sampling is 0.7"),
        ({"prompt": "the", "stop_strings": [""]}, "a stop string is empty"),
        (TextRequest("the", max_new_tokens=-3), "max_new_tokens is -3"),
        ([99999], "token id 99999"),
        (7, "a request is 7 (int); expected a string, a chat (a list of messages), a list of token ids, a TextRequest"),
        (torch.tensor([1, 2]), "a request is tensor([1, 2]) (Tensor); expected"),
        (b"the", "a request is b'the' (bytes); expected"),
        ({"prompt": 7}, "a prompt is 7 (int); expected a string, a chat"),
        ({"prompt": b"the"}, "a prompt is b'the' (bytes); expected"),
    ]
    given = [each for pair in wrong for each in (pair[0], {"prompt": "the cat", "max_new_tokens": 5})]
    results = sorted(decoder.generate_many(given, slots=2), key=lambda r: r.index)
    assert [r.index for r in results] == list(range(2 * len(wrong)))
    for result, (prompt, message) in zip(results[::2], wrong, strict=True):
        assert message in str(result.error)
        assert (result.text, result.tokens) == ("", [])
        has = isinstance(prompt, dict), isinstance(prompt, TextRequest)
        assert result.prompt is (prompt.get("prompt") if has[0] else prompt.prompt if has[1] else prompt)
    assert {(r.text, r.error, r.prompt) for r in results[1::2]} == {
        (decoder.generate("the cat", max_new_tokens=5).text, None, "the cat")
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"page": 0}, "page is 0; expected an integer of at least 1"),
        ({"rows": 0.5}, "rows is 0.5; expected an integer"),
        ({"max_length": "8"}, "max_length is '8'"),
        ({"memory": 0}, "memory is 0; expected bytes, an integer, or a share"),
        ({"memory": 1.5}, "memory is 1.5"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1; expected an integer of at least 0"),
        ({"max_new_tokens": None}, "max_new_tokens is None"),
        ({"sampling": 0.7}, "sampling is 0.7; expected specdec.SamplingParams"),
        ({"memory": 100}, "memory for KV is 100 bytes, less than a page of 64 tokens takes"),
    ],
)
def test_pools_that_cannot_be(decoder: SpeculativeDecoder, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        next(decoder.generate_many(["the"], **settings))


def test_requests_that_are_none(decoder: SpeculativeDecoder) -> None:
    for given in (7, None):
        with pytest.raises(ValueError, match=rf"requests is {given} \(\w+\); expected an iterable of prompts"):
            decoder.generate_many(given)  # type: ignore[arg-type]


def test_chats(decoder: SpeculativeDecoder) -> None:
    without = byte_tokenizer()
    without.chat_template = None
    plain = SpeculativeDecoder(decoder.model, without)
    with pytest.raises(ValueError, match="the tokenizer has no chat template; give a string"):
        plain.generate([{"role": "user", "content": "the"}])


def test_a_tokenizer_of_another_model(decoder: SpeculativeDecoder) -> None:
    other = SpeculativeDecoder(make_model("llama", vocab_size=100), decoder.tokenizer)
    with pytest.raises(ValueError, match=r"has token id 2\d+; the model's ids go from 0 to 99"):
        other.generate("\n\n the cat")


def test_nothing_is_computed_before_the_input_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("the model ran")

    monkeypatch.setattr(type(model), "forward", fail)
    for settings in ({"max_new_tokens": 500}, {"drafter": "ngramm"}, {"sampling": 3}, {"stop_strings": "a"}):
        with pytest.raises(ValueError):
            specdec.generate(model, IDS, **settings)


def test_a_generation_config_without_ends(model: PreTrainedModel) -> None:
    other = make_model("llama")
    other.generation_config = GenerationConfig()
    assert specdec.generate(other, IDS, max_new_tokens=4).sequences.shape == (1, 7)
    other.generation_config = None
    assert specdec.generate(other, IDS, max_new_tokens=4).sequences.shape == (1, 7)


def test_backends_trees_and_strings_that_do_not_fit(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for settings, message in (
        ({"backend": "triton"}, "'triton' needs a GPU, this model is on the CPU; use 'auto'"),
        ({"drafter": "ngram", "tree": "best_first"}, "drafter 'ngram' takes no tree; leave `tree` out"),
    ):
        with pytest.raises(ValueError, match=message):
            specdec.generate(model, ids([5, 6]), max_new_tokens=3, **settings)  # type: ignore[arg-type]


def test_a_folder_is_a_draft_model(model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    for drafter in (tmp_path, str(tmp_path)):
        out = specdec.generate(model, ids([5, 6]), drafter=drafter, max_new_tokens=9, eos_token_id=[])
        assert out.stats.mean_accepted_length_pooled > 2  # a model always agrees with itself


def test_a_zoo_name_is_a_draft_model() -> None:
    decoder = SpeculativeDecoder.from_pretrained("tiny", drafter="tiny-draft", tree="chain", device="cpu")
    assert isinstance(decoder.engine.drafter, DraftModel)


def test_a_hub_id_is_a_draft_model(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"cannot load 'org/small-1.5b' .* HF_HUB_OFFLINE is set") as told:
        specdec.generate(model, IDS, drafter="org/small-1.5b")
    assert "\n" not in str(told.value)
    asked: list[str] = []

    def load(name: str) -> PreTrainedModel:
        asked.append(name)
        return model

    monkeypatch.setattr("specdec.loading.load_model", load)
    out = specdec.generate(model, IDS, drafter="org/small-1.5b", max_new_tokens=9, eos_token_id=[])
    assert asked == ["org/small-1.5b"]
    assert out.stats.mean_accepted_length_pooled > 2
