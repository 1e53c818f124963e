"""Medusa's heads: head k guesses the token k + 1 places after the root from the hidden state before the root alone.

A head is residual blocks, x + SiLU(Wx + b), and an LM head, its own or the target's. Cai et al., arXiv 2401.10774.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from specdec.drafters import medusa_files
from specdec.heads import Export, begun, make_config, read_head, target_weights, with_weights, write_head
from specdec.loading import HEAD_KEY
from specdec.target import Target


@dataclass(frozen=True, slots=True)
class Config:
    """What a head is made of.

    Attributes:
        hidden_size, vocab_size: of the target, H and V.
        heads: tokens guessed ahead of a root, K.
        layers: residual blocks of a head.
        own_lm_heads: every head has an LM head of its own; else the target's serves all.

    Raises:
        ValueError: a number is below 1.
    """

    hidden_size: int
    vocab_size: int
    heads: int = 4
    layers: int = 1
    own_lm_heads: bool = True

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "own_lm_heads" and (type(value) is not int or value < 1):
                raise ValueError(f"a head's {name} is {value!r}; expected a whole number of at least 1")


def zeros(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear layer of zeros; within a SiLU it learns all the same."""
    layer = nn.Linear(inputs, outputs, bias)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Blocks(nn.Module):
    """Residual blocks one after the other; new ones change nothing."""

    def __init__(self, size: int, count: int):
        super().__init__()
        self.layers = nn.ModuleList(zeros(size, size) for _ in range(count))

    def forward(self, x: Tensor, condition: Tensor | float = 0.0) -> Tensor:
        """`x` `[..., H]`; `condition` `[..., H]` is added to what the first block's SiLU reads."""
        for layer in self.layers:
            x = x + nn.functional.silu(layer(x) + condition)
            condition = 0.0
        return x


class MedusaHead(nn.Module):
    """All K heads. See the module, and `TrainableHead` for what `specdec train` does with them."""

    kind: ClassVar[str] = "medusa"
    formats: ClassVar[Mapping[str, Callable[[Any, Any], Export]]] = medusa_files.FORMATS
    hidden_layers: tuple[int, ...] = (-1,)

    def __init__(self, config: Config):
        super().__init__()
        self.config, self.depth = config, config.heads
        self.hidden_size, self.vocab_size = config.hidden_size, config.vocab_size
        own = config.heads if config.own_lm_heads else 0
        self.blocks = nn.ModuleList(Blocks(config.hidden_size, config.layers) for _ in range(config.heads))
        self.lm_heads = nn.ModuleList(nn.Linear(self.hidden_size, self.vocab_size, bias=False) for _ in range(own))
        self.lm_head: Tensor | None = None  # [V, H], the target's

    @classmethod
    def new(cls, target: Target, heads: int = 4, layers: int = 1, own_lm_heads: bool = True) -> Self:
        """Untrained heads for a target, bound to it: they give its own logits. See Config."""
        _, lm_head = target_weights(target)
        head = begun(cls(Config(lm_head.shape[1], len(lm_head), heads, layers, own_lm_heads)), target)
        with torch.no_grad():
            for weight in head.lm_heads.parameters():
                weight.copy_(lm_head)
        return head

    @classmethod
    def load(cls, name: str | Path) -> Self:
        """Heads from a folder of ours, or of a foreign format (see `medusa_files`), as `specdec.heads` finds it.

        Raises:
            ValueError: there is none, it is damaged, or another drafter's.
        """
        settings, tensors = read_head(name)
        if HEAD_KEY in settings or not cls.formats:
            config = make_config(Config, cls.kind, settings, name)
        else:
            sizes, tensors = medusa_files.read_foreign(settings, tensors, name)
            config = Config(**sizes)
        return with_weights(cls, config, tensors, name)

    def save(self, folder: str | Path) -> None:
        """To be read by `load`; the target's own weights stay out."""
        write_head(folder, self.kind, self.config, self.state_dict())

    def bind(self, embedding: Tensor, lm_head: Tensor) -> None:
        """See TrainableHead."""
        self.lm_head = lm_head

    def guess(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Logits of what follows some paths.

        Args:
            hidden: `[B, H]`, the hidden state before each root.
            tokens: `[B, F, k + 1]` int64, paths from the root down, the root included.

        Returns:
            `[B, F, V]`. Head k sees none of the tokens: the same for all paths of a root.
        """
        level = tokens.shape[-1] - 1
        logits = self._lm_logits(level, self.blocks[level](hidden[:, None]))  # [B, 1, V]
        return logits.expand(-1, tokens.shape[1], -1)

    def _lm_logits(self, level: int, x: Tensor) -> Tensor:
        """`x` `[..., H]` through the LM head of head `level`."""
        if self.config.own_lm_heads:
            logits: Tensor = self.lm_heads[level](x)
            return logits
        assert self.lm_head is not None, "bind the head to its target first"
        return nn.functional.linear(x, self.lm_head)

    def predict(self, tokens: Tensor, hidden: Mapping[int, Tensor], anchors: Tensor) -> Tensor:
        """See TrainableHead."""
        batch, count = anchors.shape
        rows = torch.arange(batch, device=anchors.device)[:, None]  # [B, 1]
        before = hidden[-1][rows, anchors - 1].flatten(0, 1)  # [B * A, H]
        places = anchors[..., None] + torch.arange(self.depth, device=anchors.device)  # [B, A, K]
        paths = tokens[rows[..., None], places].view(batch * count, 1, self.depth)
        logits = [self.guess(before, paths[..., : k + 1])[:, 0] for k in range(self.depth)]
        return torch.stack(logits, 1).view(batch, count, self.depth, -1)
