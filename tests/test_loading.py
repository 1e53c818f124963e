"""Models from zoo names, folders and the hub, and what is refused before anything is loaded."""

from __future__ import annotations

import json
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import nullcontext
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from specdec import SamplingParams, SpeculativeDecoder, hub, loading
from specdec.heads import head_folder

from .models import byte_tokenizer, make_model, plain_text

VOCAB = len(byte_tokenizer())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and its tokenizer as save_pretrained leaves them."""
    path = tmp_path_factory.mktemp("model")
    tokenizer = byte_tokenizer()
    make_model("llama", vocab_size=len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def copy_of(folder: Path, to: Path) -> Path:
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


# Models


def test_a_decoder_from_a_folder(folder: Path) -> None:
    decoder = SpeculativeDecoder.from_pretrained(str(folder), device="cpu", dtype="float32", drafter="ngram")
    ids = decoder.tokenizer("the cat")["input_ids"]
    expected = plain_text(decoder.model, ids, 20)
    assert decoder.generate("the cat", max_new_tokens=20).tokens == [expected]
    assert "".join(decoder.stream("the cat", max_new_tokens=20)) == decoder.tokenizer.decode(expected)
    assert not decoder.model.training
    relative = os.path.relpath(folder)
    assert SpeculativeDecoder.from_pretrained(relative).generate("the cat", max_new_tokens=20).tokens == [expected]


def test_a_draft_models_folder_as_the_drafter(folder: Path) -> None:
    decoder = SpeculativeDecoder.from_pretrained(str(folder), drafter=str(folder))
    out = decoder.generate("the cat", max_new_tokens=20)
    assert out.stats.mean_accepted_length_pooled > 3  # the draft model is the target


def test_a_path_object_is_a_name_too(folder: Path) -> None:
    assert loading.load_model(folder).config.vocab_size == VOCAB


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("auto", torch.float32), ("bfloat16", torch.bfloat16), (torch.float64, torch.float64)],
)
def test_dtypes(folder: Path, dtype: Any, expected: torch.dtype) -> None:
    assert loading.load_model(str(folder), dtype=dtype).dtype == expected


def test_a_draft_model_from_a_folder(folder: Path) -> None:
    drafter = {
        "_target_": "specdec.drafters.draft_model.DraftModel",
        "model": {"_target_": "specdec.loading.load_model", "name": str(folder), "device": "cpu"},
        "tree": "static",
    }
    decoder = SpeculativeDecoder.from_pretrained(str(folder), drafter=drafter)
    out = decoder.generate("the cat", max_new_tokens=20, sampling=SamplingParams(temperature=1.0))
    assert out.stats.mean_accepted_length_pooled > 3  # the draft model is the target
    plain = SpeculativeDecoder.from_pretrained(str(folder), drafter="none")
    assert plain.generate("the cat", max_new_tokens=20, sampling=SamplingParams(temperature=1.0)).text == out.text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/nowhere/at/all", "model folder '/nowhere/at/all' does not exist; give a folder, a hub id, or one of"),
        ("./nowhere", "model folder './nowhere' does not exist"),
        ("tinny", "unknown model 'tinny'"),
        ("", "unknown model ''"),
    ],
)
def test_models_that_are_not_there(name: str, message: str) -> None:
    for load in (loading.load_model, loading.load_tokenizer, SpeculativeDecoder.from_pretrained):
        with pytest.raises(ValueError, match=message):
            load(name)


@pytest.fixture
def asked() -> Iterator[list[str]]:
    """For what is asked of the hub, which nothing is known of before and after."""
    hub.out_of_reach.cache_clear()
    yield []
    hub.out_of_reach.cache_clear()


@pytest.fixture
def no_network(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub does not answer, and whoever tries it again is found out."""

    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError(OSError("Name or service not known"))

    def wait(seconds: float) -> None:
        raise AssertionError(f"waited for {seconds} s")

    monkeypatch.setattr("specdec.hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(time, "sleep", wait)


@pytest.mark.parametrize("name", ["nobody/nothing", "gpt2"])
def test_a_hub_that_cannot_be_reached_is_told_at_once(name: str, no_network: None) -> None:
    told = r"huggingface\.co cannot be reached \(offline\?\), and it was not fetched before; give a local folder"
    with pytest.raises(ValueError, match=f"cannot load '{name}' as a causal language model: .*{told}") as error:
        loading.load_model(name)
    assert ("shipped models: tiny, tiny-draft" in str(error.value)) == (name == "gpt2")
    with pytest.raises(ValueError, match=f"no tokenizer for '{name}': .*{told}"):
        loading.load_tokenizer(name)
    with pytest.raises(ValueError, match=f"no folder 'nobody/nothing', and no such head can be fetched: .*{told}"):
        head_folder("nobody/nothing")


def test_the_hub_left_out(no_network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specdec.hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set, and it was not fetched before"):
        loading.load_model("gpt2")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (None, ""),
        (urllib.error.HTTPError("https://hub", 503, "busy", Message(), None), ""),
        (urllib.error.URLError(ssl.SSLCertVerificationError("unknown authority")), ""),
        (urllib.error.URLError(ConnectionRefusedError()), "cannot be reached (offline?)"),
        (TimeoutError(), "timed out after 3 s"),
        (urllib.error.URLError(TimeoutError()), "timed out after 3 s"),
    ],
    ids=["answers", "an error", "other certificates", "refused", "silent", "unconnected"],
)
def test_what_counts_as_out_of_reach(
    answer: Exception | None, told: str, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked once."""

    def respond(request: urllib.request.Request, timeout: float) -> Any:
        assert (request.get_method(), timeout) == ("HEAD", hub.SECONDS)
        asked.append(request.full_url)
        if answer is not None:
            raise answer
        return nullcontext()

    monkeypatch.setattr(urllib.request, "urlopen", respond)
    monkeypatch.setattr("specdec.hub.constants.HF_HUB_OFFLINE", False)
    assert hub.local_only() == hub.local_only() == bool(told)
    assert told in hub.offline_message()
    assert asked == [constants.ENDPOINT]


def test_names_of_the_first_models_on_the_hub() -> None:
    """No slash, and yet no mistake; but what looks like a shipped model is taken for one misspelt."""
    for name in ("gpt2", "distilgpt2", "bert-base-uncased", "tinyllama"):
        assert loading.model_path(name) == name
    for name in ("tinny", "tiny_draft", "Tiny", "a b", "$x"):
        with pytest.raises(ValueError, match="unknown model"):
            loading.model_path(name)


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json; expected a folder written by save_pretrained"):
        loading.load_model(str(tmp_path))


def test_a_folder_without_weights(folder: Path, tmp_path: Path) -> None:
    copy_of(folder, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no \.safetensors file; specdec loads no pickles"):
        loading.load_model(str(tmp_path))
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"specdec loads no pickles\. Convert it with save_pretrained"):
        loading.load_model(str(tmp_path))


@pytest.mark.parametrize("length", [0, 5, 200, -1000])
def test_cut_off_weights(folder: Path, tmp_path: Path, length: int) -> None:
    copy_of(folder, tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut off .*; copy or download it again"):
        loading.load_model(str(tmp_path))


def test_a_missing_part_of_the_weights(folder: Path, tmp_path: Path) -> None:
    model = loading.load_model(str(folder))
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    parts = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(parts) > 1
    assert loading.load_model(str(tmp_path)).config.vocab_size == VOCAB
    parts[1].unlink()
    with pytest.raises(ValueError, match=f"{parts[1].name} is missing"):
        loading.load_model(str(tmp_path))


def test_weights_without_some_tensor(folder: Path, tmp_path: Path) -> None:
    """transformers would fill in random numbers with a warning."""
    from safetensors.torch import load_file, save_file

    copy_of(folder, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks the weights model\.layers\.1\.mlp\.up_proj\.weight"):
        loading.load_model(str(tmp_path))


def test_weights_of_another_shape(folder: Path, tmp_path: Path) -> None:
    copy_of(folder, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["intermediate_size"] += 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot load"):
        loading.load_model(str(tmp_path))


def test_a_damaged_config(folder: Path, tmp_path: Path) -> None:
    copy_of(folder, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "lla')
    with pytest.raises(ValueError, match="cannot load"):
        loading.load_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "unheard_of"}')
    with pytest.raises(ValueError, match="cannot load"):
        loading.load_model(str(tmp_path))


def test_a_folder_without_a_tokenizer(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert loading.load_model(str(tmp_path))
    with pytest.raises(ValueError, match="no tokenizer for"):
        loading.load_tokenizer(str(tmp_path))


def test_remote_code_stays_off(folder: Path, tmp_path: Path) -> None:
    copy_of(folder, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "code.Model", "AutoConfig": "code.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text("raise SystemExit('code from the folder ran')")
    with pytest.raises(ValueError, match="trust_remote_code"):
        loading.load_model(str(tmp_path))


def test_unknown_dtype_and_device(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown dtype 'float31'. Did you mean 'float32'[?]"):
        loading.load_model(str(folder), dtype="float31")
    for device in ("cdua", "cuda:99", "meta:x"):
        with pytest.raises(ValueError, match=f"device '{device}' cannot be used"):
            loading.load_model(str(folder), device=device)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"drafter": "ngrm"}, ValueError, "unknown drafter 'ngrm'"),
        ({"drafter": {"_target_": "specdec.drafters.ngram.NGram", "max": 1}}, ValueError, "unknown setting of drafter"),
        ({"drafter": "os.getcwd"}, ValueError, "would run code from outside specdec"),
        ({"tree": "chian"}, ValueError, "unknown tree 'chian'"),
        ({"acceptance": "copled"}, ValueError, "unknown acceptance 'copled'"),
        ({"drafer": "ngram"}, TypeError, "drafer"),
    ],
)
def test_wrong_settings_are_noticed_before_the_weights_are_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(loading, "load_model", fail)
    with pytest.raises(error, match=message):
        SpeculativeDecoder.from_pretrained(str(folder), **settings)


# Yamls
