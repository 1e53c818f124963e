"""What a cell has to move and to compute, by arithmetic."""

from __future__ import annotations

from typing import NamedTuple

import torch
from transformers import LlamaForCausalLM

from specdec.experiments.bench.grid import Cell, StepCell


class Cost(NamedTuple):
    """Bytes read and written, and floating-point operations: of attention in one layer, or of a whole step."""

    bytes: int
    flops: int

    @property
    def intensity(self) -> float:
        """FLOP per byte."""
        return self.flops / self.bytes


def cost(cell: Cell) -> Cost:
    """Every key and value once, queries and results once, words once; the multiplications of both products."""
    size, kv_size = (getattr(torch, name).itemsize for name in (cell.dtype, cell.kv_dtype))
    rows = cell.batch * cell.nodes
    kv = cell.slots * cell.kv_heads * cell.dim * 2 * kv_size
    words = 0 if cell.chain else rows * -(-cell.nodes // 64) * 8
    seen = sum(cell.nodes * (context + cell.nodes) for context in cell.contexts)
    return Cost(kv + 2 * rows * cell.heads * cell.dim * size + words, 4 * seen * cell.heads * cell.dim)


def step_cost(model: LlamaForCausalLM, cell: StepCell) -> Cost:
    """Weights once without the rows of the embedding, keys and values of the contexts once; both kinds of products."""
    config = model.config
    embedding = model.get_input_embeddings().weight
    width = config.num_hidden_layers * config.head_dim  # of a head, over all layers
    kv = cell.batch * cell.context * 2 * config.num_key_value_heads * width * embedding.itemsize
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2) - embedding.numel()
    attention = 4 * cell.batch * cell.nodes * (cell.context + cell.nodes) * config.num_attention_heads * width
    weights = sum(p.nbytes for p in model.parameters()) - embedding.nbytes
    return Cost(weights + kv, 2 * cell.batch * cell.nodes * matrices + attention)
