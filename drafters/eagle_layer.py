"""The decoder layer of an EAGLE head: Llama's, whose attention reads [embedding, feature] in version 3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm

from specdec.drafters.eagle_formats import EagleConfig


class EagleLayer(nn.Module):
    """The decoder layer. That of version 1 has no norm before its attention."""

    def __init__(self, config: EagleConfig, decoder: LlamaConfig):
        super().__init__()
        width, eps = decoder.hidden_size, decoder.rms_norm_eps
        self.norm_before_residual = config.norm_before_residual
        self.self_attn = LlamaAttention(decoder, layer_idx=0)
        self.mlp = LlamaMLP(decoder)
        self.post_attention_layernorm = LlamaRMSNorm(width, eps=eps)
        self.hidden_norm = self.input_layernorm = None
        if config.version == 3:
            self.hidden_norm, self.input_layernorm = LlamaRMSNorm(width, eps=eps), LlamaRMSNorm(width, eps=eps)
            for name in ("q_proj", "k_proj", "v_proj"):
                narrow = getattr(self.self_attn, name)
                wide = nn.Linear(2 * width, narrow.out_features, bias=narrow.bias is not None)
                setattr(self.self_attn, name, wide)

    def forward(self, embedded: Tensor, features: Tensor, **attention: Any) -> Tensor:
        """`embedded` (unused by version 1) and `features` `[b, R, E]`; the same of what comes out."""
        x = residual = features
        if self.hidden_norm is not None and self.input_layernorm is not None:
            normed = self.hidden_norm(features)
            residual = normed if self.norm_before_residual else features
            x = torch.cat([self.input_layernorm(embedded), normed], -1)
        x = residual + self.self_attn(x, **attention)[0]
        return x + self.mlp(self.post_attention_layernorm(x))
