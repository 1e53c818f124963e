"""Our attention inside an unmodified transformers model.

A function registered with transformers' AttentionInterface gets every layer's queries and the arena of our cache; who
sees what (`Visibility`) travels down as a keyword argument. `plugged_in` switches a model to it for the length of a
forward pass and back, so that the user's model stays as it was.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast, get_args

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from specdec.kernels.tree_attention import HOST, Backend, Plan, cpp, make_plan, tree_attention

if TYPE_CHECKING:
    from specdec.kernels.tree_attention.launch import Workspace

NAME = "specdec_tree"
CHAINS_ONLY = ("varlen", "flash_attn")
BACKENDS: tuple[Backend, ...] = tuple(name for name in get_args(Backend) if name not in CHAINS_ONLY)  # of a target


@dataclass(frozen=True)
class Visibility:
    """Who sees what in one forward pass of packed rows; the same for every layer. Fields as in `tree_attention`.

    Attributes:
        block_table: `[B, P]` int32.
        row_starts: `[B + 1]` int32.
        context_lens: `[B]` int32, committed tokens.
        tree_sizes: `[B]` int32, nodes in the scratch places, those of earlier passes included.
        words: `[R, W]` int64, or None for causal chains.
        backend: one of BACKENDS.
        fixed_chunks: as in `tree_attention`.
    """

    block_table: Tensor
    row_starts: Tensor
    context_lens: Tensor
    tree_sizes: Tensor
    words: Tensor | None
    backend: Backend
    fixed_chunks: bool = False

    @cached_property
    def plan(self) -> Plan:
        """What backends read to the host, once per pass."""
        return make_plan(self.block_table, self.row_starts, self.context_lens, self.tree_sizes, self.words)

    @property
    def reads_lengths(self) -> bool:
        """Whether the backend reads lengths to the host: all but Triton do, and `auto` is that for trees."""
        return self.backend != "triton" and (self.words is None or self.backend != "auto")

    @cached_property
    def workspace(self) -> Workspace | None:
        """What the layers of a pass share on a GPU: the device-side plan, launched once, and buffers."""
        if self.block_table.device.type == "cpu" or self.backend not in ("auto", "triton"):
            return None
        try:
            from specdec.kernels.tree_attention.launch import Workspace
        except ImportError:  # without triton, auto goes to SDPA
            return None
        return Workspace()


def choose_backend(backend: str, device: torch.device) -> Backend:
    """What `auto` stands for on this device, as far as that is known before the rows are.

    Raises:
        ValueError: the name is unknown, it has no trees, or it cannot run here.
    """
    if backend in CHAINS_ONLY:
        raise ValueError(
            f"attention backend {backend!r} does prompts and chains only, but a target verifies trees; "
            f"use 'auto', which gives the prompts to such a kernel where there is one"
        )
    if backend not in BACKENDS:
        raise ValueError(f"unknown attention backend {backend!r}; expected one of: {', '.join(BACKENDS)}")
    if backend == "triton" and device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError("attention backend 'triton' needs a GPU, this model is on the CPU; use 'auto' or 'packed'")
    if backend == "cpp":
        if device.type != "cpu":
            raise ValueError(
                f"attention backend 'cpp' is for the CPU, this model is on {device}; use 'auto' or 'triton'"
            )
        cpp.require()
    if backend != "auto":
        return cast(Backend, backend)
    if device.type != "cpu":
        return "auto"  # on CUDA the operation itself chooses: trees or prompts
    return "cpp" if cpp.available() else "packed"


def tree_attention_forward(
    module: nn.Module,
    query: Tensor,  # [1, Hq, R, D]
    key: Tensor,  # [B, Hkv, room, D], the arena of this layer
    value: Tensor,  # [B, Hkv, room, Dv]
    attention_mask: Tensor | None,
    *,
    specdec_rows: Visibility | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature; returns `[1, R, Hq, Dv]`.

    Raises:
        ValueError: the model did not hand the keyword argument down to its attention layers.
    """
    rows = specdec_rows
    if rows is None:
        raise ValueError(f"{type(module).__name__} does not hand keyword arguments down to its attention function")
    q = query[0].transpose(0, 1)  # [R, Hq, D]
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    window, cap = sliding_window or 0, softcap or 0.0
    fixed = rows.fixed_chunks
    if rows.backend in HOST:
        output = HOST[rows.backend].attend(
            q, key, value, rows.plan, scale=scale, window=window, softcap=cap, sinks=s_aux, fixed_chunks=fixed
        )
    else:
        output = tree_attention(
            q,
            key,
            value,
            rows.block_table,
            rows.row_starts,
            rows.context_lens,
            rows.tree_sizes,
            rows.words,
            scale=scale,
            window=window,
            softcap=cap,
            sinks=s_aux,
            fixed_chunks=fixed,
            backend=rows.backend,
            workspace=rows.workspace,
            plan=rows.plan if rows.reads_lengths else None,
        )
    return output[None], None


AttentionInterface.register(NAME, tree_attention_forward)


def attention_configs(model: PreTrainedModel) -> list[PreTrainedConfig]:
    """Every config object that a module of `model` reads its attention implementation from, once."""
    configs = {id(c): c for m in model.modules() if isinstance(c := getattr(m, "config", None), PreTrainedConfig)}
    return list(configs.values())


@contextmanager
def plugged_in(configs: Sequence[PreTrainedConfig], name: str = NAME) -> Iterator[None]:
    """Within the block, models with these configs use our attention (or another, by `name`)."""
    settings = [vars(config) for config in configs]  # past the checks of transformers' own attribute access
    before = [each["_attn_implementation_internal"] for each in settings]
    for each in settings:
        each["_attn_implementation_internal"] = name
    try:
        yield
    finally:
        for each, implementation in zip(settings, before, strict=True):
            each["_attn_implementation_internal"] = implementation


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the block, a model that was being trained is in eval mode."""
    training = [m for m in model.modules() if m.training] if model.training else []
    if not training:
        yield
        return
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
