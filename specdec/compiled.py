"""The verify forward as compiled graphs: inductor, with 16-bit weights packed into them ("freezing").

One graph per bucket of (slots, nodes). Trees are padded to the next bucket with dead nodes, and rows stay `[B, N]`
instead of being packed, so that shapes say nothing about lengths: the text may grow, and the cache be allocated anew,
without another graph. The KV arena, and who sees what, stay out of the graph's sight behind one operator,
`specdec::tree_attention`, which writes the new rows in place and attends.

Graphs belong to the model, not to the Target, and are dropped when its weights change: a second decoder, or the next
call of `generate`, finds them ready. The model itself is left as it was, its own weights stay where they are. 16-bit
weights are packed, once for all graphs of few rows and once for the others: compiling takes their memory up to twice
more, whatever the number of buckets. Wider ones stay inputs of the graph: packed float32 differs from bucket to bucket
and takes many times its memory, for a tenth of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary, finalize

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from specdec import attention_operator
from specdec.attention import evaluating, plugged_in
from specdec.buckets import bucket
from specdec.cache import RowsOnly, TreeCache
from specdec.core import TargetOutput
from specdec.kernels.common.native import no_compiler
from specdec.packed_weights import fingerprint, forget, share
from specdec.tree.token_tree import num_words

NAME = "specdec_compiled"

Home = tuple[int, int, int, int]  # of a layer: the arena of its keys and the index in it, and those of its values
Key = tuple[Any, ...]


class _Pass(RowsOnly):
    """One forward pass inside the graph: the cache as the model sees it, and what its attention function is told.

    `update` only hands the new rows on; the operator stores them.
    """

    def __init__(self, arenas: Sequence[Tensor], homes: Sequence[Home], about: Sequence[Tensor], backend: str):
        self.arenas, self.homes, self.about, self.backend = arenas, homes, about, backend
        self.layer = 0
        self.taken: dict[int, Tensor] = {}
        self.is_sliding = [False] * len(homes)

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        self.layer = layer
        return key, value

    def __len__(self) -> int:
        return len(self.homes)


def _attention(
    module: nn.Module,
    query: Tensor,  # [1, Hq, R, D]
    key: Tensor,  # [1, Hkv, R, D], new rows
    value: Tensor,  # [1, Hkv, R, Dv]
    attention_mask: Tensor | None,
    *,
    specdec_rows: _Pass,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature; returns `[1, R, Hq, Dv]`."""
    rows = specdec_rows
    keys, key_index, values, value_index = rows.homes[rows.layer]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = torch.ops.specdec.tree_attention(
        query, key, value, rows.arenas[keys], rows.arenas[values], key_index, value_index, *rows.about,
        rows.layer, scale, sliding_window or 0, softcap or 0.0, s_aux, rows.backend,
    )  # fmt: skip
    return output, None


AttentionInterface.register(NAME, _attention)


def _tap(layer: int) -> Callable[..., None]:
    """A forward hook that keeps the module's output `[1, R, H]` in the pass."""

    def hook(_: nn.Module, __: Any, settings: Mapping[str, Any], output: Any) -> None:
        settings["specdec_rows"].taken[layer] = output if isinstance(output, Tensor) else output[0]

    return hook


def _verify(
    model: PreTrainedModel,
    homes: Sequence[Home],
    hidden_layers: Sequence[int],
    max_positions: int,
    backend: str,
    arenas: Sequence[Tensor],  # [layers, pages, heads, page, size] each
    block_table: Tensor,  # [B, P] int32
    lengths: Tensor,  # [B] int32
    tokens: Tensor,  # [B, N] int64
    depths: Tensor,  # [B, N] int32
    words: Tensor,  # [B, N, W] int64
    counts: Tensor,  # [B] int32
    sizes: Tensor,  # [B] int32
    places: Tensor,  # [B] int32
) -> tuple[Tensor, list[Tensor]]:
    """Logits `[B, N, V]` and the hidden states `[B, N, H]` asked for. Every bucket compiles its own copy of this."""
    batch, nodes = tokens.shape
    starts = torch.arange(0, (batch + 1) * nodes, nodes, dtype=torch.int32, device=tokens.device)
    live = torch.arange(nodes, device=tokens.device) < counts[:, None]  # [B, N]; anything may stand in the others
    tokens, depths, words = tokens * live, depths * live, words * live[..., None]
    positions = (lengths[:, None] + depths).flatten()
    if max_positions:
        positions = positions.clamp(max=max_positions - 1)
    about = (block_table, starts, lengths, sizes, words.flatten(0, 1), counts, places)
    rows = _Pass(arenas, homes, about, backend)
    logits = model(
        input_ids=tokens.flatten()[None],
        position_ids=positions[None],
        past_key_values=rows,
        use_cache=True,
        specdec_rows=rows,
    ).logits
    hidden = [rows.taken[layer].view(batch, nodes, -1) for layer in hidden_layers]
    return logits.view(batch, nodes, -1), hidden


def _no_guards(guards: Sequence[object]) -> list[bool]:
    """What a graph depends on is in its key; checking hundreds of a model's attributes takes longer than a layer."""
    return [False] * len(guards)


# A C++ wrapper takes a quarter of a step less than a Python one; shapes are what the key says. Layers with one input
# (queries, keys and values; gate and up) are one product.
OPTIONS: dict[str, Any] = {
    "guard_filter_fn": _no_guards,
    "cpp_wrapper": True,
    "cpp.enable_concat_linear": True,
    "size_asserts": False,
    "alignment_asserts": False,
}
# Of so few rows a product is a stream of weights: inductor's own loops then take less time than oneDNN's products, with
# eight rows more.
FEW = 4
OWN_PRODUCTS = {"max_autotune_gemm": True, "max_autotune_gemm_backends": "CPP"}


@dataclass(eq=False)
class _Graphs:
    """Everything compiled for one model. Holds its weights, but not the model.

    Attributes:
        weights: addresses and versions of the weights that the graphs hold.
        packed: packed weights by a digest of their bytes, each once for all graphs.
    """

    weights: tuple[object, ...]
    graphs: dict[Key, Callable[..., Any]] = field(default_factory=dict)
    packed: dict[bytes, Tensor] = field(default_factory=dict)


_kept: WeakKeyDictionary[PreTrainedModel, _Graphs] = WeakKeyDictionary()


class CompiledForward:
    """Compiled passes over the scratch nodes of one Target.

    Args:
        model: the target's model; it is left as it was.
        configs: see `plugged_in`.
        backend: of tree attention, but not auto.
        taps: modules whose outputs are the hidden states, by layer.
        max_positions: of the model, 0 for no limit.

    Raises:
        ValueError: there is no C++ compiler, or the model is not on the CPU.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        configs: Sequence[PreTrainedConfig],
        backend: str,
        taps: Mapping[int, nn.Module],
        max_positions: int,
    ):
        check_compiler(model.device)
        self._model, self._configs, self._backend, self._taps = model, configs, backend, dict(taps)
        self._max_positions = max_positions
        self._max_nodes = 1
        self._homes: tuple[Home, ...] = ()

    def open(self, cache: TreeCache, max_nodes: int) -> None:
        """The cache is allocated, requests will come; graphs of weights that have changed since are dropped."""
        self._max_nodes = max_nodes
        self._homes = _homes(cache)
        weights = fingerprint(self._model)
        kept = _kept.get(self._model)
        if kept is None or kept.weights != weights:
            _kept[self._model] = _Graphs(weights)

    def __call__(
        self, cache: TreeCache, tokens: Tensor, depths: Tensor, words: Tensor, counts: Tensor, first: int
    ) -> TargetOutput:
        """See `Target.extend`."""
        nodes = tokens.shape[1]
        size = bucket(nodes, self._max_nodes)
        width = max(words.shape[2], num_words(max(size, self._max_nodes)))
        if size > nodes or width > words.shape[2]:
            tokens, depths = pad(tokens, (0, size - nodes)), pad(depths, (0, size - nodes))
            words = pad(words, (0, width - words.shape[2], 0, size - nodes))
        counts = counts.to(torch.int32)
        # New tensors even where nothing is added: of two inputs that are one object, the graph would know one only.
        sizes, places = torch.where(counts > 0, counts + first, 0), cache.lengths + first
        inputs = (cache.lengths, tokens, depths.to(torch.int32), words, counts, sizes, places)
        about = (self._homes, tuple(self._taps), self._max_positions, self._backend)
        arguments = (self._model, *about, cache.arenas, cache.block_table, *(x.contiguous() for x in inputs))
        threads = torch.get_num_threads() if tokens.device.type == "cpu" else 0  # generated loops are cut for them
        kept = _kept[self._model]
        key = (tokens.shape[0], size, width, threads, cache.block_table.shape[1], cache.pages, *about)
        with ExitStack() as stack:  # also when it is compiled already: torch may have been told to forget it
            stack.callback(attention_operator.forget_step)
            stack.enter_context(evaluating(self._model))
            stack.enter_context(plugged_in(self._configs, NAME))
            for layer, module in self._taps.items():
                stack.callback(module.register_forward_hook(_tap(layer), with_kwargs=True).remove)
            graph = kept.graphs.get(key)
            if graph is None:
                logits, hidden = self._compile(kept, key, arguments)
            else:
                logits, hidden = graph(*arguments)
        taken = {layer: x[:, :nodes] for layer, x in zip(self._taps, hidden, strict=True)}
        return TargetOutput(logits[:, :nodes], taken)

    def _compile(self, kept: _Graphs, key: Key, arguments: tuple[Any, ...]) -> tuple[Tensor, list[Tensor]]:
        """Make a bucket's graph, keep it, and return its first output."""
        from torch._inductor import config
        from torch._inductor.codecache import PyCodeCache

        name = f"verify_{key[0]}x{key[1]}"
        # A copy of the code for every bucket: torch keeps graphs by code object, and looks through all that it has.
        own = FunctionType(_verify.__code__.replace(co_name=name), _verify.__globals__, name)
        few = self._model.dtype.itemsize <= 2 and key[0] * key[1] <= FEW
        options = OPTIONS | OWN_PRODUCTS if few else OPTIONS
        graph = torch.compile(own, fullgraph=True, dynamic=False, options=options)
        for arena in arguments[5]:
            torch._dynamo.mark_dynamic(arena, 3)  # places of a page
        modules = len(PyCodeCache.modules)
        try:
            with config.patch(freezing=self._model.dtype.itemsize <= 2):
                output: tuple[Tensor, list[Tensor]] = graph(*arguments)
        except Exception as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ValueError(
                f"{type(self._model).__name__} could not be compiled ({type(error).__name__}: {reason.strip()}); "
                "use compile=False"
            ) from error
        share(PyCodeCache.modules[modules:], self._model, kept.packed)
        finalize(own, forget, PyCodeCache.modules[modules:], kept.packed)
        kept.graphs[key] = graph
        return output


def check_compiler(device: torch.device) -> None:
    """Raises:
    ValueError: not on the CPU, or no C++ compiler.
    """
    if device.type != "cpu":
        raise ValueError(
            f"a Target is compiled for the CPU only, and this model is on {device}; a decoder with compile=True "
            "captures its steps"
        )
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise no_compiler("compile=True") from error


def _homes(cache: TreeCache) -> tuple[Home, ...]:
    """Which arena, and which index in it, every layer's keys and values are."""
    owners = {arena.untyped_storage().data_ptr(): number for number, arena in enumerate(cache.arenas)}

    def home(view: Tensor) -> tuple[int, int]:
        return owners[view.untyped_storage().data_ptr()], view.storage_offset() // max(1, view.numel())

    return tuple((*home(keys), *home(values)) for keys, values in zip(cache.keys, cache.values, strict=True))
