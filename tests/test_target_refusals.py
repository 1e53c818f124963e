"""Models that cannot be verified in trees: one clear ValueError each, never a wrong text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaForCausalLM

import specdec
from specdec import inspection
from specdec.target import Target

from .models import ARCHITECTURES, from_config, make_config, make_model, plain_text

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GPT_SIZES: dict[str, Any] = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
BERT_SIZES = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
BART_SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 64,
}
# Which of these depends on the release of transformers.
LINEAR = "layers of type linear_attention|a recurrent state|uses its own attention"
UNLIKE = "other logits in a tree than by itself|uses its own attention"


def build(model_class: str, config_class: str, **settings: Any) -> PreTrainedModel:
    """A tiny random model, or a skip where this release of transformers has no such class."""
    if not hasattr(transformers, model_class):
        pytest.skip(f"transformers {transformers.__version__} has no {model_class}")
    torch.manual_seed(0)
    model: PreTrainedModel = getattr(transformers, model_class)(getattr(transformers, config_class)(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return model


CASES: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "t5": (
        lambda: build("T5ForConditionalGeneration", "T5Config", vocab_size=64, d_model=32, d_ff=48, num_layers=1),
        "is an encoder-decoder",
    ),
    "bart": (lambda: build("BartForConditionalGeneration", "BartConfig", **BART_SIZES), "is an encoder-decoder"),
    "bart_decoder": (
        lambda: build("BartForCausalLM", "BartConfig", **BART_SIZES, is_decoder=True, is_encoder_decoder=False),
        UNLIKE,  # it counts positions from the cache's length
    ),
    "roberta_decoder": (
        lambda: build("RobertaForCausalLM", "RobertaConfig", **BERT_SIZES, is_decoder=True),
        UNLIKE,  # its positions begin behind the padding id
    ),
    "bert": (lambda: build("BertLMHeadModel", "BertConfig", **BERT_SIZES), "or is not causal"),
    "bert_masked": (lambda: build("BertForMaskedLM", "BertConfig", **BERT_SIZES), "no language-model head"),
    "llama_without_head": (lambda: build("LlamaModel", "LlamaConfig", **SIZES), "no language-model head"),
    "mamba": (
        lambda: build("MambaForCausalLM", "MambaConfig", vocab_size=64, hidden_size=32, num_hidden_layers=1),
        LINEAR,
    ),
    "mamba2": (
        lambda: build(
            "Mamba2ForCausalLM",
            "Mamba2Config",
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=1,
            state_size=8,
            num_heads=8,
            head_dim=8,
            n_groups=1,
        ),
        LINEAR,
    ),
    "jamba": (
        lambda: build(
            "JambaForCausalLM",
            "JambaConfig",
            **SIZES,
            num_experts=2,
            attn_layer_period=2,
            attn_layer_offset=1,
            use_mamba_kernels=False,
        ),
        LINEAR,
    ),
    "bamba": (
        lambda: build(
            "BambaForCausalLM",
            "BambaConfig",
            **SIZES,
            attn_layer_indices=[1],
            mamba_n_heads=8,
            mamba_d_head=8,
            mamba_d_state=8,
        ),
        LINEAR,
    ),
    "qwen3_next": (
        lambda: build(
            "Qwen3NextForCausalLM",
            "Qwen3NextConfig",
            **SIZES,
            head_dim=8,
            num_experts=2,
            num_experts_per_tok=1,
            layer_types=["linear_attention", "full_attention"],
            linear_num_value_heads=2,
            linear_num_key_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
        ),
        "layers of type linear_attention",
    ),
    "recurrent_gemma": (
        lambda: build(
            "RecurrentGemmaForCausalLM", "RecurrentGemmaConfig", **{**SIZES, "num_hidden_layers": 3, "lru_width": 32}
        ),
        LINEAR,
    ),
    "rwkv": (
        lambda: build("RwkvForCausalLM", "RwkvConfig", vocab_size=64, hidden_size=32, num_hidden_layers=2),
        "a recurrent state",
    ),
    "lfm2": (
        lambda: build("Lfm2ForCausalLM", "Lfm2Config", **SIZES, layer_types=["conv", "full_attention"]),
        "layers of type conv",
    ),
    "llama4_chunks": (
        lambda: build(
            "Llama4ForCausalLM",
            "Llama4TextConfig",
            **SIZES,
            head_dim=8,
            intermediate_size_mlp=48,
            num_local_experts=2,
            attention_chunk_size=8,
            no_rope_layers=[1, 0],
        ),
        "layers of type chunked_attention; specdec needs full or sliding-window attention",
    ),
    "gptj": (lambda: build("GPTJForCausalLM", "GPTJConfig", **GPT_SIZES, rotary_dim=4), "uses its own attention"),
    "bloom": (
        lambda: build("BloomForCausalLM", "BloomConfig", vocab_size=64, hidden_size=32, n_layer=2, n_head=4),
        "uses its own attention",  # and alibi
    ),
    "falcon": (
        lambda: build(
            "FalconForCausalLM",
            "FalconConfig",
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
        ),
        "uses its own attention",
    ),
    "mpt": (
        lambda: build("MptForCausalLM", "MptConfig", vocab_size=64, d_model=32, n_heads=4, n_layers=2),
        "uses its own attention",  # and alibi
    ),
    "xlnet": (
        lambda: build("XLNetLMHeadModel", "XLNetConfig", vocab_size=64, d_model=32, n_layer=2, n_head=4, d_inner=48),
        "uses its own attention",
    ),
    "stablelm": (
        lambda: build("StableLmForCausalLM", "StableLmConfig", **SIZES),
        "hands it no keyword arguments: 0 calls of ours and 2 stored KVs in 2 layers",
    ),
    "diffllama": (lambda: build("DiffLlamaForCausalLM", "DiffLlamaConfig", **SIZES), "[04] calls of ours and 2 stored"),
    "gemma3n_shared_kv": (
        lambda: build(
            "Gemma3nForCausalLM",
            "Gemma3nTextConfig",
            **{**SIZES, "num_hidden_layers": 4, "intermediate_size": [48] * 4},
            head_dim=8,
            num_kv_shared_layers=2,
            vocab_size_per_layer_input=64,
            hidden_size_per_layer_input=8,
            laurel_rank=4,
            activation_sparsity_pattern=[0.0] * 4,
            layer_types=["sliding_attention", "full_attention"] * 2,
        ),
        "4 calls of ours and 2 stored",
    ),
    "phimoe_window": (
        lambda: build("PhimoeForCausalLM", "PhimoeConfig", **SIZES, sliding_window=8, num_local_experts=2),
        "sliding window of 8 in layer 0 that it does not hand to its attention",
    ),
    "qwen2_moe_window": (
        lambda: build(
            "Qwen2MoeForCausalLM",
            "Qwen2MoeConfig",
            **SIZES,
            num_experts=2,
            num_experts_per_tok=1,
            use_sliding_window=True,
            sliding_window=8,
            layer_types=["full_attention", "sliding_attention"],
        ),
        "sliding window of 8 in layer 1 that it does not hand to its attention",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_by_name_and_reason(case: str) -> None:
    make, reason = CASES[case]
    model = make()
    implementation = model.config._attn_implementation
    with pytest.raises(ValueError, match=reason) as caught:
        specdec.generate(model, torch.tensor([[3, 4, 5]]), drafter="ngram", max_new_tokens=4)
    assert type(model).__name__ in str(caught.value)
    assert model.config._attn_implementation == implementation


def test_refused_as_a_draft_model_too() -> None:
    with pytest.raises(ValueError, match="BloomForCausalLM uses its own attention"):
        specdec.generate(make_model(), torch.tensor([[3, 4]]), drafter=CASES["bloom"][0](), max_new_tokens=4)


def test_the_same_models_run_where_the_reason_is_gone() -> None:
    for case, settings in (("phimoe_window", {"num_local_experts": 2}), ("qwen2_moe_window", {"num_experts": 2})):
        name = {"phimoe_window": "Phimoe", "qwen2_moe_window": "Qwen2Moe"}[case]
        model = build(f"{name}ForCausalLM", f"{name}Config", **SIZES, **settings, num_experts_per_tok=1)
        out = specdec.generate(model, torch.tensor([[3, 4, 5]]), max_new_tokens=20, eos_token_id=[])
        assert out.sequences[0, 3:].tolist() == plain_text(model, [3, 4, 5], 20)


class BiasedAttention(LlamaAttention):
    """Hands its attention function something that specdec knows nothing of."""

    bias: dict[str, Any] = {}  # noqa: RUF012

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs, **self.bias)


@pytest.mark.parametrize("name", ["position_bias", "indices", "alibi"])
def test_tensors_that_would_be_ignored(name: str) -> None:
    model = make_model("llama")
    for layer in model.model.layers:
        layer.self_attn.__class__ = BiasedAttention
        layer.self_attn.bias = {name: torch.zeros(1)}
    with pytest.raises(ValueError, match=f"hands {name} to its attention, which tree attention does not take"):
        Target(model)


def test_an_alibi_added_to_the_mask_is_noticed() -> None:
    """It never reaches our function: only the numbers show it."""

    class Alibi(LlamaForCausalLM):
        def forward(self, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
            if attention_mask is None and "specdec_rows" not in kwargs:
                steps = torch.arange(input_ids.shape[1])
                distance = (steps[None] - steps[:, None]).float()
                attention_mask = torch.where(distance > 0, float("-inf"), distance)[None, None]
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    model = make_model("llama")
    model.__class__ = Alibi
    with pytest.raises(ValueError, match="gives other logits in a tree than by itself"):
        Target(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_weights(value: float) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = value
    with pytest.raises(ValueError, match="LlamaForCausalLM: logits are NaN; the weights are damaged, or the dtype"):
        specdec.generate(model, torch.tensor([[3, 4, 5]]), max_new_tokens=3)


def test_weights_damaged_after_the_first_use() -> None:
    model = make_model("llama")
    specdec.generate(model, torch.tensor([[3, 4, 5]]), max_new_tokens=3)
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    with pytest.raises(ValueError, match="the target's logits are NaN"):
        specdec.generate(model, torch.tensor([[3, 4, 5]]), max_new_tokens=3)


def test_a_damaged_draft_model() -> None:
    small = make_model("phi")
    with torch.no_grad():
        small.lm_head.weight[:] = float("nan")
    with pytest.raises(ValueError, match="PhiForCausalLM: logits are NaN"):
        specdec.generate(make_model("llama"), torch.tensor([[3, 4, 5]]), drafter=small, max_new_tokens=3)


def test_infinite_logits_of_a_padded_vocabulary_are_no_damage() -> None:
    model = make_model("llama")
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(80).index_fill(0, torch.tensor([78, 79]), float("-inf")))
    out = specdec.generate(model, torch.tensor([[3, 4, 5]]), max_new_tokens=30, eos_token_id=[])
    assert out.sequences[0, 3:].tolist() == plain_text(model, [3, 4, 5], 30)


def test_a_head_of_zeros_is_no_damage() -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    out = specdec.generate(model, torch.tensor([[3, 4, 5]]), max_new_tokens=3, eos_token_id=[])
    assert out.sequences.tolist() == [[3, 4, 5, 0, 0, 0]]


def test_not_a_model() -> None:
    with pytest.raises(ValueError, match="the target is a Linear; expected a transformers causal language model"):
        specdec.generate(torch.nn.Linear(2, 2), torch.tensor([[1]]))


def test_a_model_on_several_devices() -> None:
    model = make_model("llama")
    model.hf_device_map = {"model.layers.0": "cpu", "model.layers.1": "disk"}
    with pytest.raises(ValueError, match="spread over cpu, disk; specdec needs the whole model on one device"):
        Target(model)


LONG_ROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 24,
}


@pytest.mark.parametrize("where", ["rope_parameters", "config"])
def test_long_rope_past_the_original_length(where: str) -> None:
    rope = dict(LONG_ROPE)
    if where == "config":
        del rope["original_max_position_embeddings"]
    model = make_model("phi3", rope_parameters=rope, original_max_position_embeddings=24)
    ids = torch.arange(2, 12)[None]
    with pytest.raises(ValueError, match="longrope rotary scaling, which past 24 tokens depends on the longest text"):
        specdec.generate(model, ids, max_new_tokens=15)
    # up to there it works, and drafts that look further do not switch the scaling
    small = make_model("llama", seed=4)
    for drafter, tree in (("ngram", None), (small, "best_first"), (model, "best_first")):
        out = specdec.generate(model, ids, drafter=drafter, tree=tree, max_new_tokens=14, eos_token_id=[])
        assert out.sequences[0, 10:].tolist() == plain_text(model, ids[0].tolist(), 14)


def test_dynamic_rope_past_the_original_length() -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    model = make_model("llama", max_position_embeddings=24, rope_parameters=rope)
    ids = torch.arange(2, 12)[None]
    with pytest.raises(ValueError, match="dynamic rotary scaling, which past 24 tokens depends on the longest text"):
        specdec.generate(model, ids, max_new_tokens=15)
    out = specdec.generate(model, ids, drafter=model, tree="best_first", max_new_tokens=14, eos_token_id=[])
    assert out.sequences[0, 10:].tolist() == plain_text(model, ids[0].tolist(), 14)


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_rotary_scaling_that_depends_on_nothing_runs(kind: str) -> None:
    rope: dict[str, Any] = {"rope_type": kind, "factor": 4.0, "rope_theta": 10000.0}
    if kind != "linear":
        rope["original_max_position_embeddings"] = 16
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    model = make_model("llama", rope_parameters=rope)
    out = specdec.generate(model, torch.arange(2, 12)[None], drafter=model, max_new_tokens=40, eos_token_id=[])
    assert out.sequences[0, 10:].tolist() == plain_text(model, list(range(2, 12)), 40)


@pytest.mark.parametrize("architecture", sorted({"llama", "gpt2", "opt"} & set(ARCHITECTURES)))
def test_texts_up_to_the_last_position(architecture: str) -> None:
    limit: dict[str, Any] = {"n_positions" if architecture == "gpt2" else "max_position_embeddings": 24}
    model = make_model(architecture, **limit)
    assert inspection.max_positions(model) == 24
    prompt = list(range(2, 12))
    for length, count in ((10, 14), (23, 1), (24, 0)):
        prompt = [2 + i for i in range(length)]
        for drafter, tree in (("none", None), ("ngram", None), (model, "best_first"), (model, "chain")):
            out = specdec.generate(
                model, torch.tensor([prompt]), drafter=drafter, tree=tree, max_new_tokens=count, eos_token_id=[]
            )
            expected = plain_text(model, prompt, count) if count else []
            assert out.sequences[0, length:].tolist() == expected
    with pytest.raises(ValueError, match=r"prompt plus new tokens make 25 tokens, but \w+ has 24 positions; shorten"):
        specdec.generate(model, torch.tensor([prompt]), max_new_tokens=1)


def test_a_draft_model_with_fewer_positions_than_the_target() -> None:
    small = from_config(make_config("llama", max_position_embeddings=16), auto=AutoModelForCausalLM)
    with pytest.raises(ValueError, match=r"make \d+ tokens, but LlamaForCausalLM has 16 positions"):
        specdec.generate(make_model("llama"), torch.tensor([[3, 4, 5]]), drafter=small, max_new_tokens=20)


def test_a_hidden_layer_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="hidden layer 2 asked of LlamaForCausalLM; expected -1 or 0 to 1"):
        Target(make_model("llama"), hidden_layers=(2,))


def test_an_unknown_backend() -> None:
    with pytest.raises(ValueError, match="unknown attention backend 'flash'; expected one of: auto, "):
        Target(make_model("llama"), backend="flash")


def test_a_backend_that_lacks_what_the_model_needs() -> None:
    with pytest.raises(ValueError, match="softcap"):
        Target(make_model("gemma2"), backend="sdpa")
