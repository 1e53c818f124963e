"""The head of `block`: a few layers that predict a whole block of tokens in one pass.

As in DFlash (arXiv 2602.06036) the target's hidden states enter as keys and values alone: what some of its layers put
out at a place is fused into one row, which every layer projects, so a new token of the text costs one projection. The
block's own rows are the root and placeholders for what follows; they see all rows of the text before the root, and
each other: those before them (JetSpec, arXiv 2606.18394) or all (DFlash). A row's logits do not know the tokens drafted
before it; a low-rank correction by the one right before it, gated by the row, is added where the tree grows (DSpark,
arXiv 2607.05147).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel, Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RMSNorm, Qwen3RotaryEmbedding, rotate_half

from specdec.attention import plugged_in
from specdec.drafters.block_formats import DECODER, BlockConfig, read_foreign, write_foreign
from specdec.drafters.layer_settings import check_settings, layer_settings, shape_of
from specdec.heads import Export, begun, make_config, read_head, with_weights, write_head
from specdec.loading import HEAD_KEY
from specdec.target import Target

KIND = "block"
SPREAD = 0.02  # of new weights


def to_dflash(head: BlockHead, model: PreTrainedModel) -> Export:
    """The head of a target `model` as DFlash's own code, vLLM and SGLang read it."""
    layers = model.config.get_text_config().num_hidden_layers
    return Export(*write_foreign(head.config, head.state_dict(), layers))


class BlockHead(nn.Module):
    """See the module, and `TrainableHead` for what `specdec train` does with it.

    Attributes:
        decoder: the layers' settings, which `attention.plugged_in` switches to our attention.
        formats: what `specdec export` can write.
    """

    formats: ClassVar[Mapping[str, Callable[[BlockHead, PreTrainedModel], Export]]] = {"dflash": to_dflash}

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.config = config
        self.depth, self.hidden_layers, self.vocab_size = config.depth, config.hidden_layers, config.vocab_size
        self.decoder = Qwen3Config(**config.decoder, vocab_size=config.vocab_size, attn_implementation="sdpa")
        width, eps = self.decoder.hidden_size, self.decoder.rms_norm_eps
        self.hidden_size: int = width
        self.fc = nn.Linear(len(config.hidden_layers) * width, width, bias=False)
        self.hidden_norm = Qwen3RMSNorm(width, eps=eps)
        self.layers = nn.ModuleList(Qwen3DecoderLayer(self.decoder, i) for i in range(self.decoder.num_hidden_layers))
        self.norm = Qwen3RMSNorm(width, eps=eps)
        learned = config.mask_token is None
        self.masks = nn.Parameter(torch.zeros(config.rows - 1, width)) if learned else None
        self.lead = nn.Linear(width, width, bias=False) if config.lead else None
        self.correction = Correction(config.vocab_size, width, config.rank) if config.rank else None
        self.embedding: Tensor | None = None  # of the target, as is:
        self.lm_head: Tensor | None = None
        self.rotary: tuple[nn.Module, ...] = ()  # no submodule: a cast of the head must leave its frequencies alone

    @classmethod
    def new(
        cls,
        target: Target,
        depth: int = 7,
        layers: int = 1,
        hidden_layers: Sequence[int] | None = None,
        intermediate_size: int | None = None,
        causal: bool = True,
        from_root: bool = True,
        lead: bool = True,
        rank: int = 64,
        mask_token: int | None = None,
    ) -> BlockHead:
        """An untrained head for a target, bound to it.

        Args:
            target: any whose embedding is as wide as its hidden states.
            depth: see BlockConfig, as causal, from_root, lead, rank and mask_token.
            layers: decoder layers.
            hidden_layers: of the target; None for four over its depth.
            intermediate_size: of the MLPs; None for three times the hidden size.
        """
        given = {**shape_of(target, intermediate_size), "num_hidden_layers": layers}
        decoder = layer_settings(Qwen3Config, DECODER, given)
        chosen = tuple(hidden_layers or spread(target.model.config.get_text_config().num_hidden_layers))
        config = BlockConfig(target.vocab_size, depth, chosen, decoder, causal, from_root, lead, rank, mask_token)
        head = cls(config)
        head._begin()
        return begun(head, target)

    def _begin(self) -> None:
        """New weights; the correction begins as none."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=SPREAD)
        if self.masks is not None:
            nn.init.normal_(self.masks, std=SPREAD)
        if self.correction is not None:
            nn.init.zeros_(self.correction.after.weight)

    @classmethod
    def load(cls, name: str | Path) -> BlockHead:
        """A head of ours or of others, see `specdec.heads` and `block_formats`.

        Raises:
            ValueError: there is none of that name, or it is damaged or another drafter's.
        """
        settings, tensors = read_head(name)
        if HEAD_KEY in settings:
            config = make_config(BlockConfig, KIND, settings, name)
            check_settings(Qwen3Config, DECODER, config.decoder, name)
        else:
            config, tensors = read_foreign(settings, tensors, name)
        return with_weights(cls, config, tensors, name)

    def save(self, folder: str | Path) -> None:
        """To be read by `load`; the target's own weights stay out."""
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
        """Rows of a block that drafts `depth` tokens: fewer than all only where no row sees later ones."""
        return self.config.rows - (self.depth - depth if self.config.causal else 0)

    def fuse(self, hidden: Mapping[int, Tensor]) -> Tensor:
        """What the target's layers put out, `[..., H]` each, as one row `[..., H]`."""
        features = torch.cat([hidden[layer] for layer in self.hidden_layers], -1)  # [..., layers * H]
        fused: Tensor = self.hidden_norm(self.fc(features.to(self.dtype)))
        return fused

    def context(self, fused: Tensor, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values `[B, heads, L, size]` of every layer for rows `[B, L, H]` of the text."""
        cos, sin = (x[:, None] for x in self.rotary[0](fused, positions))  # [B, 1, L, size]
        result = []
        for layer in self.layers:
            attention: Any = layer.self_attn
            shape = (*fused.shape[:2], -1, attention.head_dim)
            key = attention.k_norm(attention.k_proj(fused).view(shape)).transpose(1, 2)
            value = attention.v_proj(fused).view(shape).transpose(1, 2)
            result.append((key * cos + rotate_half(key) * sin, value))
        return result

    def block(self, roots: Tensor, before: Tensor, rows: int) -> Tensor:
        """What goes in: `[..., rows, H]` for roots `[...]`, the text's rows before which are `before` `[..., H]`."""
        assert self.embedding is not None, "bind the head to its target first"
        if self.masks is None:
            masks = self.embedding[self.config.mask_token].expand(rows - 1, -1)
        else:
            masks = self.masks[: rows - 1]
        x = torch.cat([self.embedding[roots][..., None, :].to(self.dtype), masks.expand(*roots.shape, -1, -1)], -2)
        return x if self.lead is None else x + self.lead(before)[..., None, :]

    def run(self, x: Tensor, positions: Tensor, cache: object, attention: str, **arguments: Any) -> Tensor:
        """Block rows `[B, R, H]` through the layers and the norm.

        Args:
            x: see `block`.
            positions: `[B, R]` int64.
            cache: whose `update` adds the rows' keys and values to the text's.
            attention: name of transformers' AttentionInterface; `arguments` are for it.
        """
        angles = self.rotary[0](x, positions)
        with plugged_in([self.decoder], attention):
            for layer in self.layers:
                x = layer(x, position_embeddings=angles, past_key_values=cache, use_cache=True, **arguments)
        normed: Tensor = self.norm(x)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """`[..., H]` -> `[..., V]`, before the correction."""
        assert self.lm_head is not None
        return linear(hidden, self.lm_head)

    def gates(self, hidden: Tensor) -> Tensor | None:
        """How much rows `[..., H]` let themselves be corrected: `[..., rank]`, for `correct`."""
        return None if self.correction is None else self.correction.gates(hidden)

    def correct(self, logits: Tensor, gates: Tensor | None, tokens: Tensor) -> Tensor:
        """Logits `[..., V]` of rows with these `gates`, once the tokens before them `[...]` are known."""
        if self.correction is None or gates is None:
            return logits
        return logits + self.correction(gates, tokens)

    def predict(self, tokens: Tensor, hidden: Mapping[int, Tensor], anchors: Tensor) -> Tensor:
        """See TrainableHead. All anchors' blocks go through one attention over `L + A * rows` places."""
        batch, length = tokens.shape
        rows, device = self.config.rows, tokens.device
        fused = self.fuse(hidden)  # [B, L, H]
        places = torch.arange(length, device=device)
        text = _Text(self.context(fused, places.expand(batch, -1)))
        before = fused.gather(1, (anchors - 1)[..., None].expand(-1, -1, fused.shape[-1]))  # [B, A, H]
        x = self.block(tokens.gather(1, anchors), before, rows).flatten(1, 2)  # [B, A * rows, H]
        positions = (anchors[..., None] + torch.arange(rows, device=device)).flatten(1)  # [B, A * rows]
        number = torch.arange(anchors.shape[1], device=device).repeat_interleave(rows)  # [A * rows]
        own = number[:, None] == number
        if self.config.causal:
            own = own.tril()
        known = (places < anchors[..., None]).repeat_interleave(rows, 1)  # [B, A * rows, L]
        mask = torch.cat([known, own.expand(batch, -1, -1)], -1)[:, None]
        out = self.run(x, positions, text, "sdpa", attention_mask=mask).unflatten(1, (-1, rows))
        out = out[:, :, rows - self.depth :]  # [B, A, K, H]
        earlier = (anchors[..., None] + torch.arange(self.depth, device=device)).flatten(1)  # [B, A * K]
        return self.correct(self.logits(out), self.gates(out), tokens.gather(1, earlier).view(out.shape[:-1]))


class Correction(nn.Module):
    """What the token before changes about a row's logits, of low rank."""

    def __init__(self, vocab_size: int, width: int, rank: int):
        super().__init__()
        self.before = nn.Embedding(vocab_size, rank)
        self.gate = nn.Linear(width, rank, bias=False)
        self.after = nn.Linear(rank, vocab_size, bias=False)

    def gates(self, hidden: Tensor) -> Tensor:
        """See BlockHead."""
        opened: Tensor = 1 + self.gate(hidden)
        return opened

    def forward(self, gates: Tensor, tokens: Tensor) -> Tensor:
        """`[..., V]`; see `BlockHead.correct`."""
        change: Tensor = self.after(self.before(tokens) * gates)
        return change


class _Text:
    """A cache of the text's keys and values, which is only read: block rows see them and their own."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]]):
        self.layers = layers

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """`[B, heads, L + R, size]` each."""
        keys, values = self.layers[layer]
        return torch.cat([keys, key], 2), torch.cat([values, value], 2)


def spread(layers: int, count: int = 4) -> tuple[int, ...]:
    """Some of a target's layers, spread over its depth, the last one too: as they come, so that sizes are alike."""
    return tuple(sorted({max(1, round(layers * i / count)) - 1 for i in range(1, count + 1)}))
