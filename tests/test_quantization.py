"""Weights of 8 bits: another model, which is decoded without loss; and what is refused before anything is loaded.

`make test-quant` runs all of it, elsewhere what needs torchao is skipped.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import specdec
from specdec import SamplingParams, SpeculativeDecoder, loading, quantization, registry
from specdec.experiments.cli import main

from .models import byte_tokenizer, make_model, ragged_batch

VOCAB = len(byte_tokenizer())
CPU = torch.device("cpu")
with_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="make test-quant brings torchao")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    make_model(vocab_size=VOCAB, hidden_size=128, intermediate_size=256).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def weight_bytes(model: PreTrainedModel) -> int:
    """Of the decoder layers."""
    return sum(quantization.stored_bytes(p) for name, p in model.named_parameters() if ".layers." in name)


@with_torchao
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_take_as_many_bytes_as_they_should(dtype: str, folder: Path) -> None:
    plain = loading.load_model(folder, "cpu", dtype)
    packed = loading.load_model(folder, "cpu", dtype, quantize="int8")
    assert packed.dtype == plain.dtype
    size = plain.dtype.itemsize
    assert weight_bytes(plain) == size * sum(p.numel() for n, p in plain.named_parameters() if ".layers." in n)
    assert 1 / size < weight_bytes(packed) / weight_bytes(plain) < 1.15 / size  # scales and norms are as they were
    for part in ("get_input_embeddings", "get_output_embeddings"):
        assert torch.equal(getattr(packed, part)().weight, getattr(plain, part)().weight)
    ids = torch.tensor([[5, 6, 7, 8]])
    ours, theirs = (model(ids).logits.detach().double().flatten() for model in (packed, plain))
    assert not torch.equal(ours, theirs)
    assert torch.cosine_similarity(ours, theirs, 0) > 0.99


@with_torchao
@pytest.mark.parametrize("lengths", [(6,), (9, 3, 1, 12, 5)], ids=["one", "ragged"])
def test_lossless_with_respect_to_itself(lengths: tuple[int, ...], folder: Path) -> None:
    """Packed targets and packed drafts, greedy and sampled."""
    target = loading.load_model(folder, "cpu", "float32", quantize="int8")
    ids, mask, _ = ragged_batch(lengths, vocab=VOCAB)
    settings: dict[str, Any] = {"max_new_tokens": 30, "eos_token_id": [], "pad_token_id": 0}
    for sampling in (SamplingParams(), SamplingParams(temperature=0.8, seed=2)):
        plain = specdec.generate(target, ids, mask, drafter="none", sampling=sampling, **settings)
        for drafter in ("ngram", target):
            ours = specdec.generate(target, ids, mask, drafter=drafter, sampling=sampling, **settings)
            assert torch.equal(ours.sequences, plain.sequences)
        assert ours.stats.mean_accepted_length_pooled > 3  # it is its own draft model


@with_torchao
def test_a_decoder_and_a_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = {**registry.read_yaml("drafter", "draft_model"), "model": None}
    draft["model"] = {"_target_": "specdec.loading.load_model", "name": str(folder), "quantize": "int8"}
    decoder = SpeculativeDecoder.from_pretrained(folder, drafter=draft, quantize="int8", device="cpu")
    assert decoder.generate("the cat", max_new_tokens=20).stats.mean_accepted_length_pooled > 3
    monkeypatch.chdir(tmp_path)
    question = {"question_id": 1, "category": "code", "turns": ["the cat"]}
    Path("question.jsonl").write_text(json.dumps(question) + "\n")
    short = [f"target.name={folder}", "data.path=question.jsonl", "measure.max_new_tokens=4"]
    sizes = {}
    for kind in ("null", "int8"):
        assert main(["run", *short, f"target.quantize={kind}", f"hydra.run.dir=run_{kind}"]) == 0
        target = json.loads(Path(f"run_{kind}", "summary.json").read_text())["target"]
        sizes[target["quantize"]] = target["weight_bytes"]
    assert sizes["int8"] < 0.6 * sizes[None]
    assert "with int8 weights" in Path("run_int8", "report.html").read_text()


@with_torchao
def test_what_cannot_be_packed() -> None:
    with pytest.raises(ValueError, match=r"takes a model in bfloat16, float16, float32, not torch\.float64; set dtype"):
        quantization.quantize(make_model(dtype=torch.float64), "int8", CPU)
    with pytest.raises(ValueError, match=r"takes a model in bfloat16, not torch\.float32"):
        quantization.quantize(make_model(), "int4", CPU)
    with pytest.raises(ValueError, match="GPT2LMHeadModel has no linear layers that can be packed as int8"):
        quantization.quantize(make_model("gpt2"), "int8", CPU)
    narrow = make_model(dtype=torch.bfloat16)  # no layer is a group wide
    with pytest.raises(ValueError, match="LlamaForCausalLM has no linear layers that can be packed as int4"):
        quantization.quantize(narrow, "int4", CPU)


def test_refused_before_anything_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specdec.loading.AutoModelForCausalLM", None)
    with pytest.raises(ValueError, match=r"unknown quantize 'int6'\. Did you mean .* Known: int4, int8"):
        loading.load_model(folder, quantize="int6")
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"quantize='int8' needs the package torchao: pip install \"specdec\[quant\]\""
    ):
        loading.load_model(folder, "cpu", quantize="int8")
    monkeypatch.setattr(quantization, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match=r"needs an NVIDIA GPU of compute capability 8\.0 or more; the device is cpu"):
        loading.load_model(folder, "cpu", quantize="int4")
