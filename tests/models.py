"""Tiny random models of many architectures: the same code paths as the large ones, in milliseconds.

Weights are wider than usual (`initializer_range`), so that greedy text is not a loop and a wrong mask changes it.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

VOCAB = 80
POSITIONS = 128
WINDOW = 8  # shorter than every text

_BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_ALTERNATING = ["sliding_attention", "full_attention"]

# architecture -> (config class, settings over _BASE; None takes one away)
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 8}),
    "mistral": ("MistralConfig", {"sliding_window": WINDOW}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "gemma2": (
        "Gemma2Config",
        {
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 30.0,
            "layer_types": _ALTERNATING,
            "attn_implementation": "eager",  # some releases' SDPA leaves out the soft-capping
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW, "layer_types": _ALTERNATING},
    ),
    "phi": ("PhiConfig", {"partial_rotary_factor": 0.5}),
    "phi3": ("Phi3Config", {"sliding_window": None, "original_max_position_embeddings": POSITIONS}),
    "olmo2": ("Olmo2Config", {}),
    "granite": ("GraniteConfig", {"attention_multiplier": 0.5, "logits_scaling": 2.0, "residual_multiplier": 0.5}),
    "gpt_oss": (
        "GptOssConfig",
        {
            "head_dim": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": WINDOW,
            "layer_types": _ALTERNATING,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "starcoder2": ("Starcoder2Config", {"sliding_window": WINDOW}),
    "gpt_neox": ("GPTNeoXConfig", {"num_key_value_heads": None}),
    "gpt2": (
        "GPT2Config",
        {
            "hidden_size": None,
            "intermediate_size": None,
            "num_hidden_layers": None,
            "num_attention_heads": None,
            "num_key_value_heads": None,
            "max_position_embeddings": None,
            "n_embd": 32,
            "n_inner": 48,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": POSITIONS,
        },
    ),
    "opt": (
        "OPTConfig",
        {
            "intermediate_size": None,
            "num_key_value_heads": None,
            "initializer_range": None,
            "ffn_dim": 48,
            "word_embed_proj_dim": 32,
            "init_std": 0.6,
        },
    ),
    "cohere2": ("Cohere2Config", {"sliding_window": WINDOW, "layer_types": _ALTERNATING, "logit_scale": 1.0}),
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            "num_key_value_heads": 4,
            "moe_intermediate_size": 32,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
    ),
}
# Releases of transformers whose attention of these takes keyword arguments, or no mask of its own; refused before.
_SINCE = {"gpt2": (5, 4), "opt": (5, 2)}
_RELEASE = tuple(int(part) for part in transformers.__version__.split(".")[:2])
ARCHITECTURES = tuple(name for name in _CONFIGS if _SINCE.get(name, (5, 0)) <= _RELEASE)


def make_config(architecture: str, **settings: Any) -> PreTrainedConfig:
    """The tiny config of an architecture; `settings` go over its own, None takes one away."""
    name, own = _CONFIGS[architecture]
    merged = {**_BASE, **own, **settings}
    taken_away = {key for key, value in {**own, **settings}.items() if value is None and key in _BASE}
    return getattr(transformers, name)(**{k: v for k, v in merged.items() if k not in taken_away})


def make_model(
    architecture: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **settings: Any
) -> PreTrainedModel:
    """A random model in eval mode; the same seed gives the same weights."""
    return from_config(make_config(architecture, **settings), seed, dtype)


def from_config(
    config: PreTrainedConfig, seed: int = 0, dtype: torch.dtype = torch.float32, auto: Any = AutoModelForCausalLM
) -> PreTrainedModel:
    """A random model of any config, every weight that its initialisation leaves at a constant moved off it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = auto.from_config(config).to(dtype).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.numel() > 1 and parameter.std() < 1e-3:  # norms, biases, sinks
                    parameter += 0.1 * torch.randn_like(parameter)
    return model


def noisy_copy(model: PreTrainedModel, scale: float = 0.02, seed: int = 1) -> PreTrainedModel:
    """A draft model that sometimes agrees: the model's weights with noise of `scale` times their own spread."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        draft = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in draft.parameters():
                if parameter.numel() > 1:
                    parameter += scale * parameter.std() * torch.randn_like(parameter)
    return draft


def plain_text(model: PreTrainedModel, prompt: list[int], max_new_tokens: int, **settings: Any) -> list[int]:
    """What the model's own `generate` continues one prompt with, greedily unless `settings` say otherwise."""
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, **settings}
    ids = torch.tensor([prompt], device=model.device)
    return model.generate(ids, max_new_tokens=max_new_tokens, **settings)[0, len(prompt) :].tolist()


@cache
def own_texts(lengths: tuple[int, ...], count: int, vocab: int = VOCAB) -> list[list[int]]:
    """`plain_text` of `ragged_batch(lengths, vocab=vocab)` by the model of most tests of drafters: written once."""
    model = make_model(vocab_size=vocab, dtype=torch.float64)
    return [plain_text(model, prompt, count) for prompt in ragged_batch(lengths, vocab=vocab)[2]]


Batch = tuple[torch.Tensor, torch.Tensor, list[list[int]]]  # input_ids [B, L], attention_mask [B, L], the prompts


def ragged_batch(lengths: tuple[int, ...], seed: int = 0, vocab: int = VOCAB, left: tuple[bool, ...] = ()) -> Batch:
    """Random prompts of these lengths; every second one is padded on the left, or those that `left` says."""
    longest = max(lengths)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(len(lengths), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    prompts = []
    for row, length in enumerate(lengths):
        prompt = torch.randint(2, vocab, (length,), generator=generator)
        on_left = left[row] if left else row % 2 == 1
        place = slice(longest - length, longest) if on_left else slice(0, length)
        ids[row, place], mask[row, place] = prompt, 1
        prompts.append(prompt.tolist())
    return ids, mask, prompts


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level BPE over all bytes and a few merges, trained on the spot, with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat and the dog ran to the other cat " * 3], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left"
    )
    fast.chat_template = (
        "{% for m in messages %}<bos>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    return fast
