"""The head of `eagle`: one decoder layer that writes a draft from what the target's layers put out.

It runs over pairs. The pair of place t is the token there and the feature of place t - 1, what the target's layers put
out before they knew that token; it stands at position t - 1, sees the pairs before it, and predicts token t + 1. What
the layer puts out is the feature of place t as the head guesses it: with a drafted token t + 1 it makes the next pair.

EAGLE-1 and 2 (arXiv 2401.15077, 2406.16858): the feature is what the target's LM head reads, pairs enter the layer
through `fc`, and the target's LM head reads what comes out. EAGLE-3 (arXiv 2503.01840): `fc` makes the feature from
three of the target's layers, the layer's attention reads [embedding, feature], both normed, and norm and LM head are
the head's own, over the tokens that are drafted at all. Tensors have the names of EAGLE-3's own files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear
from transformers import LlamaConfig, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding

from specdec.drafters.eagle_formats import DECODER, EagleConfig, default_layers, read_foreign, write_foreign
from specdec.drafters.eagle_layer import EagleLayer
from specdec.drafters.layer_settings import check_settings, layer_settings, shape_of
from specdec.heads import Export, begun, make_config, read_head, target_weights, with_weights, write_head
from specdec.loading import HEAD_KEY
from specdec.target import Target

KIND = "eagle"
SPREAD = 0.02  # of new weights


def to_vllm(head: EagleHead, model: PreTrainedModel) -> Export:
    """The head of a target `model` as vLLM reads it: `method: eagle3`, or `eagle` for version 1."""
    return Export(*write_foreign(head.config, head.state_dict()))


class EagleHead(nn.Module):
    """See the module, and `TrainableHead` for what `specdec train` does with it.

    Attributes:
        decoder: the layer's settings, which `attention.plugged_in` switches to our attention.
        formats: what `specdec export` can write: vLLM's, which EAGLE's own code reads, too.
    """

    formats: ClassVar[Mapping[str, Callable[[EagleHead, PreTrainedModel], Export]]] = {"vllm": to_vllm}

    def __init__(self, config: EagleConfig):
        super().__init__()
        self.config = config
        self.depth, self.vocab_size, self.hidden_size = config.depth, config.vocab_size, config.hidden_size
        self.hidden_layers = tuple(dict.fromkeys(config.hidden_layers))
        self.decoder = LlamaConfig(
            **config.decoder, vocab_size=config.vocab_size, num_hidden_layers=1, attn_implementation="sdpa"
        )
        width, eps = self.decoder.hidden_size, self.decoder.rms_norm_eps
        count, sources = len(config.hidden_layers), len(config.hidden_layers) * config.hidden_size
        self.midlayer = EagleLayer(config, self.decoder)
        self.embed_tokens = nn.Embedding(config.vocab_size, width) if config.own_embedding else None
        if self.embed_tokens is not None:
            self.embed_tokens.weight.requires_grad_(False)
        self.fc = nn.Linear(sources if config.version == 3 else width + sources, width, bias=config.fc_bias)
        self.input_norm = LlamaRMSNorm(sources, eps=eps) if config.input_norm == "whole" else None
        each = [LlamaRMSNorm(config.hidden_size, eps=eps) for _ in range(count)]
        self.fc_norm = nn.ModuleList(each) if config.input_norm == "each" else None
        self.norm = self.lm_head = None
        if config.version == 3:
            self.norm = LlamaRMSNorm(width, eps=eps)
            self.lm_head = nn.Linear(width, config.draft_vocab_size, bias=False)
        self.d2t: Tensor | None
        fewer = config.draft_vocab_size < config.vocab_size
        self.register_buffer("d2t", torch.zeros(config.draft_vocab_size, dtype=torch.int64) if fewer else None)
        self.chooses_tokens = False  # which can be drafted is not known yet, see `choose_tokens`
        self.embedding: Tensor | None = None  # of the target, as is:
        self.target_lm_head: Tensor | None = None
        self.rotary: tuple[nn.Module, ...] = ()  # no submodule: a cast of the head must leave its frequencies alone

    @classmethod
    def new(
        cls,
        target: Target,
        version: int = 3,
        depth: int = 5,
        hidden_layers: Sequence[int] | None = None,
        intermediate_size: int | None = None,
        draft_tokens: int | Sequence[int] | Tensor | None = None,
        norm_output: bool = False,
        input_norm: str = "none",
    ) -> EagleHead:
        """An untrained head for a target, bound to it.

        Args:
            target: any; the LM head that version 3 has of its own begins as the target's.
            version: 1 or 3.
            depth: see EagleConfig, as norm_output and input_norm.
            hidden_layers: for version 3; None for `default_layers`.
            intermediate_size: of the MLP; None for three times the hidden size.
            draft_tokens: for version 3, those that can be drafted; None for all; a number for as many, which
                `choose_tokens` chooses when there is text to count in.

        Raises:
            ValueError: version is unknown, or version 1 is to draft fewer tokens.
        """
        if version not in (1, 3) or (version == 1 and draft_tokens is not None):
            raise ValueError(
                f"an EAGLE head of version {version} with draft_tokens={draft_tokens} was asked for; expected version "
                "3, or 1 (which is 2, too) without draft_tokens"
            )
        given = {**shape_of(target, intermediate_size), "max_position_embeddings": target.max_positions or None}
        decoder = layer_settings(LlamaConfig, DECODER, given)
        target_layers = target.model.config.get_text_config().num_hidden_layers
        layers = tuple(hidden_layers or default_layers(target_layers)) if version == 3 else (-1,)
        count = draft_tokens if isinstance(draft_tokens, int) else None
        if count is not None:  # any, until they are chosen
            draft_tokens = most_frequent(torch.zeros(target.vocab_size), count)
        ids = torch.arange(target.vocab_size) if draft_tokens is None else torch.as_tensor(draft_tokens).cpu().unique()
        config = EagleConfig(
            version,
            target.vocab_size,
            decoder["hidden_size"],
            layers,
            decoder,
            len(ids),
            depth,
            target_layers,
            norm_output=norm_output,
            input_norm=input_norm,
        )
        head = begun(cls(config), target)
        head._begin()
        _, lm_head = target_weights(target)
        head._draft(ids.to(lm_head.device), lm_head)
        head.chooses_tokens = count is not None
        return head

    @torch.no_grad()
    def _begin(self) -> None:
        """New weights."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=SPREAD)

    def choose_tokens(self, counts: Tensor, lm_head: Tensor) -> None:
        """Before training: where `new` got a number of tokens to draft, they are the most frequent ones.

        Args:
            counts: `[V]`, of training text.
            lm_head: of the target, `[V, H]`.
        """
        if self.chooses_tokens:
            self._draft(most_frequent(counts, self.config.draft_vocab_size).to(lm_head.device), lm_head)

    @torch.no_grad()
    def _draft(self, ids: Tensor, lm_head: Tensor) -> None:
        """The tokens `ids`, ascending, can be drafted: the LM head begins as their rows of the target's."""
        if self.lm_head is not None:
            self.lm_head.weight.copy_(lm_head[ids])
        if self.d2t is not None:
            self.d2t.copy_(ids - torch.arange(len(ids), device=ids.device))

    @classmethod
    def load(cls, name: str | Path, target_layers: int | None = None) -> EagleHead:
        """A head of ours or of others, see `specdec.heads` and `eagle_formats`.

        Args:
            name: zoo name, folder or hub id.
            target_layers: see `read_foreign`.
        """
        settings, tensors = read_head(name)
        if HEAD_KEY in settings:
            config = make_config(EagleConfig, KIND, settings, name)
            check_settings(LlamaConfig, DECODER, config.decoder, name)
        else:
            config, tensors = read_foreign(settings, tensors, name, target_layers)
        return with_weights(cls, config, tensors, name)

    def save(self, folder: str | Path) -> None:
        """To be read by `load`."""
        write_head(folder, KIND, self.config, self.state_dict())

    def bind(self, embedding: Tensor, lm_head: Tensor) -> None:
        """See TrainableHead. Version 3 has an LM head of its own."""
        self.embedding = embedding if self.embed_tokens is None else None
        self.target_lm_head = lm_head if self.lm_head is None else None
        self.rotary = (LlamaRotaryEmbedding(self.decoder).to(embedding.device),)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.fc.weight.dtype

    def fuse(self, hidden: Mapping[int, Tensor]) -> Tensor:
        """What the target's layers put out, `[..., H]` each, as features `[..., E]`."""
        parts = [hidden[layer].to(self.dtype) for layer in self.config.hidden_layers]
        if self.config.version == 1:
            return parts[0]
        if self.fc_norm is not None:
            parts = [norm(x) for norm, x in zip(self.fc_norm, parts, strict=True)]
        x = torch.cat(parts, -1)
        fused: Tensor = self.fc(x if self.input_norm is None else self.input_norm(x))
        return fused

    def forward(self, tokens: Tensor, features: Tensor, positions: Tensor, **attention: Any) -> Tensor:
        """Run pairs.

        Args:
            tokens: `[b, R]` int64.
            features: `[b, R, E]`.
            positions: `[b, R]` or `[1, R]` int64.
            attention: for LlamaAttention: cache, mask, rows.

        Returns:
            The next features `[b, R, E]`, as the head guesses them.
        """
        table = self.embedding if self.embed_tokens is None else self.embed_tokens.weight
        assert table is not None, "the head is not bound to a target"
        embedded = embedding(tokens.clamp(0, len(table) - 1), table).to(features.dtype)  # [b, R, E]
        if self.config.version == 1:
            features = self.fc(torch.cat([embedded, features], -1))
        angles = self.rotary[0](features, positions)
        attention = {"attention_mask": None, "position_embeddings": angles, **attention}
        x: Tensor = self.midlayer(embedded, features, **attention)
        return self.norm(x) if self.norm is not None and self.config.norm_output else x

    def logits(self, features: Tensor) -> Tensor:
        """`[..., E]`, as `forward` gives them, to `[..., V]`; -inf for tokens that are never drafted."""
        if self.norm is None or self.lm_head is None:
            assert self.target_lm_head is not None, "the head is not bound to a target"
            return linear(features.to(self.target_lm_head.dtype), self.target_lm_head)
        logits: Tensor = self.lm_head(features if self.config.norm_output else self.norm(features))
        if self.d2t is None:
            return logits
        ids = self.d2t + torch.arange(len(self.d2t), device=logits.device)
        everywhere = logits.new_full((*logits.shape[:-1], self.vocab_size), float("-inf"))
        return everywhere.index_copy(-1, ids, logits)

    def predict(self, tokens: Tensor, hidden: Mapping[int, Tensor], anchors: Tensor) -> Tensor:
        """See TrainableHead. One pass over all pairs, then K - 1 over the anchors' drafted pairs (EAGLE-3's
        training-time test): these see the text's pairs up to their anchor's, and those drafted from it."""
        count, places = anchors.shape[1], torch.arange(tokens.shape[1] - 1, device=tokens.device)
        cache = _Growing()
        features = self(tokens[:, 1:], self.fuse(hidden)[:, :-1], places[None], past_key_values=cache)  # [B, L - 1, E]
        features = features.gather(1, (anchors - 1)[..., None].expand(-1, -1, features.shape[-1]))  # [B, A, E]
        logits = [self.logits(features)]
        seen = places < anchors[..., None]  # [B, A, L - 1]; the pair of place r is number r - 1
        own = torch.eye(count, dtype=torch.bool, device=tokens.device).expand(len(tokens), -1, -1)
        for step in range(1, self.depth):
            seen = torch.cat([seen, own], -1)
            drafted, positions = tokens.gather(1, anchors + step), anchors + step - 1
            features = self(drafted, features, positions, past_key_values=cache, attention_mask=seen[:, None])
            logits.append(self.logits(features))
        return torch.stack(logits, 2)


class _Growing:
    """A cache for `predict`: the keys and values of every pass behind those of the passes before."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """`[B, heads, R, size]` each."""
        if self.rows:
            key, value = (torch.cat(pair, 2) for pair in zip(self.rows, (key, value), strict=True))
        self.rows = [key, value]
        return key, value


def most_frequent(counts: Tensor, size: int) -> Tensor:
    """The `size` tokens to draft, given how often each one occurs in training text, `counts` `[V]`; ascending."""
    if not 1 <= size <= len(counts):
        raise ValueError(f"{size} tokens to draft were asked for; expected 1 to {len(counts)}, the vocabulary")
    return counts.argsort(descending=True, stable=True)[:size].sort().values
