"""The head of `block`: a few layers that predict a whole block of tokens in one pass.

As in DFlash (arXiv 2602.06036) the target's hidden states enter as keys and values alone: what some of its layers put
out at a place is fused into one row, which every layer projects, so a new token of the text costs one projection. The
block's own rows are the root and placeholders for what follows; they see all rows of the text before the root, and
each other: those before them (JetSpec, arXiv 2606.18394) or all (DFlash). A row's logits do not know the tokens drafted
before it; a low-rank correction by the one before it (DSpark, arXiv 2607.05147) is added where the tree grows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3DecoderLayer,
    Qwen3RMSNorm,
    Qwen3RotaryEmbedding,
    rotate_half,
)

from specdec.attention import plugged_in
from specdec.heads import load_weights, make_config, read_head, write_head
from specdec.target import Target

KIND = "block"


@dataclass(frozen=True)
class BlockConfig:
    """What a head is made of.

    Attributes:
        vocab_size: of the target.
        depth: tokens predicted ahead of a root, K.
        hidden_layers: of the target, whose outputs are fused.
        decoder: settings of transformers' Qwen3Config, whose layers these are.
        causal: a block row sees those before it; False: all. A causal head also drafts shorter blocks, for less.
        from_root: the root's row predicts the token after the root; False: that row predicts nothing, and the
            placeholders' rows the tokens at their own places.
        rank: of the correction by the token before; 0 for none.
        mask_token: the placeholders are this token's embedding; None: each has its own, which is learned.
    """

    vocab_size: int
    depth: int
    hidden_layers: tuple[int, ...]
    decoder: dict[str, Any]
    causal: bool = True
    from_root: bool = True
    rank: int = 64
    mask_token: int | None = None
    lead: bool = True
    gated: bool = True

    @property
    def rows(self) -> int:
        """Of a block, the root's included."""
        return self.depth if self.from_root else self.depth + 1


class BlockHead(nn.Module):
    """See the module, and `TrainableHead` for what `specdec train` does with it."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.config = config
        self.depth, self.hidden_layers, self.vocab_size = config.depth, config.hidden_layers, config.vocab_size
        self.decoder = Qwen3Config(**config.decoder, vocab_size=config.vocab_size, tie_word_embeddings=False)
        width, eps = self.decoder.hidden_size, self.decoder.rms_norm_eps
        self.hidden_size: int = width
        self.fc = nn.Linear(len(config.hidden_layers) * width, width, bias=False)
        self.hidden_norm = Qwen3RMSNorm(width, eps=eps)
        self.layers = nn.ModuleList(Qwen3DecoderLayer(self.decoder, i) for i in range(self.decoder.num_hidden_layers))
        self.norm = Qwen3RMSNorm(width, eps=eps)
        own = config.mask_token is None
        self.masks = nn.Parameter(torch.zeros(config.rows - 1, width)) if own else None
        self.lead = nn.Linear(width, width, bias=False) if config.lead else None
        self.previous = nn.Embedding(config.vocab_size, config.rank) if config.rank else None
        self.gate = nn.Linear(width, config.rank, bias=False) if config.rank and config.gated else None
        self.following = nn.Linear(config.rank, config.vocab_size, bias=False) if config.rank else None
        self.embedding: Tensor | None = None
        self.lm_head: Tensor | None = None
        self.rotary: tuple[nn.Module, ...] = ()  # no submodule: a cast of the head must leave its frequencies alone

    @classmethod
    def new(
        cls,
        target: Target,
        depth: int = 7,
        layers: int = 1,
        hidden_layers: tuple[int, ...] | None = None,
        intermediate_size: int | None = None,
        causal: bool = True,
        from_root: bool = True,
        rank: int = 64,
        lead: bool = True,
        gated: bool = True,
    ) -> BlockHead:
        """An untrained head for a target, bound to it."""
        model = target.model.config.get_text_config()
        heads = model.num_attention_heads
        decoder = {
            "hidden_size": model.hidden_size,
            "intermediate_size": intermediate_size or 3 * model.hidden_size,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": getattr(model, "num_key_value_heads", None) or heads,
            "head_dim": getattr(model, "head_dim", None) or model.hidden_size // heads,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        }
        chosen = tuple(hidden_layers) if hidden_layers is not None else spread(model.num_hidden_layers)
        head = cls(BlockConfig(target.vocab_size, depth, chosen, decoder, causal, from_root, rank, None, lead, gated))
        for module in head.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.normal_(head.masks, std=0.02)
        if head.following is not None:
            nn.init.zeros_(head.following.weight)
        embedding, lm_head = target.model.get_input_embeddings().weight, target.model.get_output_embeddings().weight
        head.to(embedding.device).bind(embedding.detach().float(), lm_head.detach().float())
        return head

    @classmethod
    def load(cls, name: str | Path) -> BlockHead:
        """See `specdec.heads`."""
        settings, tensors = read_head(name)
        head = cls(make_config(BlockConfig, KIND, settings, name))
        load_weights(head, tensors, name)
        return head

    def save(self, folder: str | Path) -> None:
        """To be read by `load`."""
        write_head(folder, KIND, self.config, self.state_dict())

    def bind(self, embedding: Tensor, lm_head: Tensor) -> None:
        """See TrainableHead."""
        self.embedding, self.lm_head = embedding, lm_head
        self.rotary = (Qwen3RotaryEmbedding(self.decoder).to(embedding.device),)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.fc.weight.dtype

    def rows_for(self, depth: int) -> int:
        """Rows of a block that drafts `depth` tokens: fewer than all of them only where rows do not see later ones."""
        return self.config.rows - (self.depth - depth if self.config.causal else 0)

    def fuse(self, features: Tensor) -> Tensor:
        """Hidden states `[..., layers * H]` of the target, as one row `[..., H]`."""
        fused: Tensor = self.hidden_norm(self.fc(features.to(self.dtype)))
        return fused

    def context(self, fused: Tensor, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values `[B, heads, L, size]` of every layer for rows `[B, L, H]` of the text."""
        cos, sin = (x[:, None] for x in self.rotary[0](fused, positions))  # [B, 1, L, size]
        result = []
        for layer in self.layers:
            attention = layer.self_attn
            shape = (*fused.shape[:2], -1, attention.head_dim)
            key = attention.k_norm(attention.k_proj(fused).view(shape)).transpose(1, 2)
            value = attention.v_proj(fused).view(shape).transpose(1, 2)
            result.append((key * cos + rotate_half(key) * sin, value))
        return result

    def block(self, roots: Tensor, rows: int, lead: Tensor) -> Tensor:
        """Inputs `[..., rows, H]` of blocks with these roots `[...]`; `lead` `[..., H]` is the row before the root."""
        embedding = self.embedding
        if self.masks is None:
            masks = embedding[self.config.mask_token].expand(rows - 1, -1)
        else:
            masks = self.masks[: rows - 1]
        masks = masks.expand(*roots.shape, -1, -1)
        x = torch.cat([embedding[roots][..., None, :].to(masks.dtype), masks], -2)
        if self.lead is not None:
            x = x + self.lead(lead)[..., None, :]
        return x

    def run(self, x: Tensor, positions: Tensor, cache: object, attention: str, **arguments: Any) -> Tensor:
        """The layers over block rows `[B, R, H]`, for whoever gives them a cache and an attention; `[B, R, H]`."""
        angles = self.rotary[0](x, positions)
        with plugged_in([self.decoder], attention):
            for layer in self.layers:
                x = layer(x, position_embeddings=angles, past_key_values=cache, use_cache=True, **arguments)
        x = self.norm(x)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """`[..., H]` -> `[..., V]`, before the correction."""
        return linear(hidden, self.lm_head)

    def correct(self, logits: Tensor, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Logits `[..., V]` of rows `[..., H]`, once the tokens before `[...]` are known."""
        if self.previous is None:
            return logits
        code = self.previous(tokens)
        if self.gate is not None:
            code = code * (1 + self.gate(hidden))
        return logits + self.following(code)

    def predict(self, tokens: Tensor, hidden: Mapping[int, Tensor], anchors: Tensor) -> Tensor:
        """See TrainableHead."""
        batch, length = tokens.shape
        rows, count = self.config.rows, anchors.shape[1]
        steps = torch.arange(rows, device=tokens.device)
        fused = self.fuse(torch.cat([hidden[layer] for layer in self.hidden_layers], -1))  # [B, L, H]
        places = torch.arange(length, device=tokens.device)
        known = _Known(self.context(fused, places.expand(batch, -1)))
        lead = fused.gather(1, (anchors - 1)[..., None].expand(-1, -1, fused.shape[-1]))  # [B, A, H]
        x = self.block(tokens.gather(1, anchors), rows, lead).flatten(1, 2)  # [B, A * rows, H]
        positions = (anchors[..., None] + steps).flatten(1)
        before = places < anchors[..., None]  # [B, A, L]
        block = torch.arange(count, device=tokens.device).repeat_interleave(rows)  # [A * rows]
        own = block[:, None] == block
        if self.config.causal:
            own = own.tril()
        mask = torch.cat([before.repeat_interleave(rows, 1), own.expand(batch, -1, -1)], -1)[:, None]
        found = self.run(x, positions, known, "sdpa", attention_mask=mask)
        found = found.view(batch, count, rows, -1)[:, :, rows - self.depth :]  # [B, A, K, H]
        ahead = torch.arange(self.depth, device=tokens.device)
        previous = tokens.gather(1, (anchors[..., None] + ahead).flatten(1)).view(batch, count, -1)  # [B, A, K]
        return self.correct(self.logits(found), found, previous)


class _Known:
    """A cache of the text's rows that is only read: block rows see them and their own."""

    def __init__(self, rows: list[tuple[Tensor, Tensor]]):
        self.rows = rows

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        known_keys, known_values = self.rows[layer]
        return torch.cat([known_keys, key], 2), torch.cat([known_values, value], 2)


def spread(layers: int, count: int = 4) -> tuple[int, ...]:
    """Layers of a target of so many, spread over its depth; the last is what its LM head reads."""
    inner = [round(layers * (i + 1) / count) - 1 for i in range(count - 1)]
    return (*sorted({max(0, i) for i in inner}), -1)
