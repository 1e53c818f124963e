"""Target: prefill, verify and commit over an unmodified transformers model.

Every forward pass is a batch of packed rows: `[1, R]` tokens, each with its own position, one sequence after the other.
Prefill rows are chains, verify rows are tree nodes; the model cannot tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec import inspection
from specdec.attention import attention_configs, choose_backend, evaluating, plugged_in
from specdec.buckets import buckets, warm
from specdec.cache import CacheView, Paging, TreeCache
from specdec.chunks import Chunk, mix
from specdec.compiled import CompiledForward
from specdec.core import Drafter, TargetOutput, Verdict
from specdec.exact import check_chains, check_settings, choose_rows, in_blocks
from specdec.packing import Rows, pack_nodes, prefill_pieces
from specdec.probe import layer_shapes
from specdec.tree.riders import rider_rows
from specdec.tree.token_tree import TokenTree


class Target:
    """A causal language model that verifies trees. Used by the loop, and by drafters that are models themselves.

    Args:
        model: any transformers causal LM whose attention can be replaced; it is left as it was found.
        backend: of tree attention: auto, packed, cpp, triton, sdpa, flex or naive.
        hidden_layers: layers whose outputs every result carries (see TargetOutput).
        compile: verify with compiled graphs (see `compiled`), made when first needed or by `warmup`. Prefill stays as
            it is.
        exact: a row's bits depend on its own text alone (see `exact`); slower.

    Attributes:
        block_rows: with exact=True, rows of every pass of the model; else 0.

    Raises:
        ValueError: the model cannot be used; the message says which and why (see `inspection`).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        backend: str = "auto",
        hidden_layers: Sequence[int] = (),
        compile: bool = False,
        exact: bool = False,
    ):
        inspection.check_architecture(model)
        self.model = model
        self.device = model.device
        self.backend = choose_backend(backend, self.device)
        if exact:
            check_settings(self.backend, compile)
        self.vocab_size: int = model.config.get_text_config().vocab_size
        self.width: int = model.config.get_text_config().hidden_size
        self.max_positions = inspection.max_positions(model)
        self.hidden_layers = tuple(hidden_layers)
        self._taps = inspection.hidden_modules(model, self.hidden_layers)
        self._configs = attention_configs(model)
        self._layers = layer_shapes(model, self._configs)
        self._compiled: CompiledForward | None = None
        self.cache = TreeCache(self._layers, 0, 0, self.device)
        self.block_rows = 0
        inspection.check_logits(self)
        if exact:
            self.block_rows = choose_rows(self)
        if compile:
            self._compiled = CompiledForward(model, self._configs, self.backend, self._taps, self.max_positions)

    @property
    def lengths(self) -> Tensor:
        """`[B]` int32: committed tokens of every slot, which is also the position of its tree's root."""
        return self.cache.lengths

    @torch.inference_mode()
    def open(self, capacity: int, max_length: int, max_nodes: int = 1, paging: Paging | None = None) -> None:
        """Allocate the KV of `capacity` slots of `max_length` tokens, with room for trees of `max_nodes` nodes; with
        `paging` the pages, which somebody has to give to the slots.

        Raises:
            ValueError: the model has no positions for that many tokens.
        """
        inspection.check_length(self.model, max_length, self.max_positions)
        # A tree may start on the last place, and where the host reads late, one behind its last node: what is too long
        # is cut when it is read.
        room = max_length + 2 * max_nodes
        if self.cache.capacity == capacity and self.cache.room >= room and self.cache.paging == paging:
            for slot in range(capacity if paging else 0):
                self.cache.release(slot)
            self.cache.lengths.zero_()
        else:
            self.close()
            self.cache = TreeCache(self._layers, capacity, room, self.device, paging)
        if self._compiled:
            self._compiled.open(self.cache, max_nodes)

    @property
    def compiles(self) -> bool:
        """Whether verify passes are compiled."""
        return self._compiled is not None

    def close(self) -> None:
        """Let go of the KV."""
        self.cache = TreeCache(self._layers, 0, 0, self.device)

    @property
    def kv_bytes(self) -> int:
        """Of one token, in all layers."""
        return sum(s.heads * (s.key_size + s.value_size) * s.dtype.itemsize for s in self._layers)

    @torch.inference_mode()
    def warmup(self, capacity: int, max_nodes: int) -> None:
        """Compile now what `open` with these numbers would need later; forgets what the slots held."""
        if self._compiled is None:
            return
        self.open(capacity, 1, max_nodes)
        empty = torch.zeros(capacity, max_nodes, dtype=torch.int64, device=self.device)  # [B, N]
        what = f"{type(self.model).__name__} for {capacity} slot{'s' * (capacity > 1)}"
        warm(lambda nodes: self.verify(TokenTree.chain(empty[:, :nodes])), buckets(max_nodes), what)

    @torch.inference_mode()
    def prefill(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> TargetOutput:
        """Commit whole prompts into empty slots.

        Returns:
            logits `[b, 1, V]` after each prompt's last token, zeros for an empty one; hidden `[b, L, H]`, right padded
            with zeros.
        """
        logits: list[Tensor | None] = [None] * len(slots)
        hidden: dict[int, list[list[Tensor]]] = {layer: [[] for _ in slots] for layer in self.hidden_layers}
        for piece in prefill_pieces(self.cache, slots, prompts, self.backend):
            ends = torch.tensor(piece.counts, device=self.device).cumsum(0) - 1  # [b]
            output = self._forward(piece.tokens, piece.rows, keep=ends)
            for i, last in zip(piece.prompts, output.logits[0], strict=True):
                logits[i] = last
            for layer in self.hidden_layers:
                for i, own in zip(piece.prompts, output.hidden[layer][0].split(piece.counts), strict=True):
                    hidden[layer][i].append(own)
        return self.gathered(logits, hidden)

    def gathered(
        self, logits: Sequence[Tensor | None], hidden: Mapping[int, Sequence[Sequence[Tensor]]]
    ) -> TargetOutput:
        """What `prefill` returns, of prompts that were read in pieces.

        Args:
            logits: `[V]` after every prompt; None for an empty one.
            hidden: for every layer and prompt, `[n, H]` of its pieces.
        """
        found = [x for x in logits if x is not None]
        nothing = torch.zeros(self.vocab_size, device=self.device, dtype=found[0].dtype if found else self.model.dtype)
        empty = torch.zeros(0, self.width, device=self.device, dtype=self.model.dtype)
        padded = {
            layer: torch.nn.utils.rnn.pad_sequence([torch.cat([*p]) if p else empty for p in pieces], batch_first=True)
            for layer, pieces in hidden.items()
        }
        return TargetOutput(torch.stack([nothing if x is None else x for x in logits])[:, None], padded)

    @torch.inference_mode()
    def verify(self, tree: TokenTree, chunks: Sequence[Chunk] = ()) -> TargetOutput:
        """Run every node of every tree, and its riders, and beside them chunks of other slots; nothing is committed.

        Returns:
            logits `[B, N, V]`, hidden `[B, N, H]`, the riders' logits `[B, R, V]`. What comes of chunks is put into
            them.
        """
        rows = tree.rows
        if chunks:
            output = self._mixed(rows, chunks)
        else:
            output = self.extend(rows.tokens, rows.depths, rows.words, rows.sizes)
        if tree.riders is None:
            return output
        seats = rider_rows(tree.sizes, tree.riders.count)[..., None]  # [B, R, 1]
        hidden = {layer: x[:, : tree.max_nodes] for layer, x in output.hidden.items()}
        riders = output.logits.gather(1, seats.expand(-1, -1, self.vocab_size))
        return TargetOutput(output.logits[:, : tree.max_nodes], hidden, riders)

    @torch.inference_mode()
    def extend(self, tokens: Tensor, depths: Tensor, words: Tensor, counts: Tensor, first: int = 0) -> TargetOutput:
        """Run nodes `first ... first + counts` of the scratch places; earlier nodes are there from earlier calls.

        Args:
            tokens: `[B, N]` int64.
            depths: `[B, N]` int32, position minus committed length.
            words: `[B, N, W]` int64, visibility over all scratch nodes.
            counts: `[B]` int32, live nodes of this call.
            first: scratch place of this call's node 0.

        Returns:
            As `verify`.
        """
        if self._compiled:
            return self._compiled(self.cache, tokens, depths, words, counts, first)
        if self.block_rows:
            check_chains(self.backend, depths, counts, first)
        rows = pack_nodes(self.cache, depths, words, counts, first, self.backend)
        if rows is None:
            return self._nothing(*tokens.shape)
        packed = self._forward(rows.pick(tokens), rows)
        hidden = {layer: rows.spread(x[0]) for layer, x in packed.hidden.items()}
        return TargetOutput(rows.spread(packed.logits[0]), hidden)

    def _mixed(self, tree: TokenTree, chunks: Sequence[Chunk]) -> TargetOutput:
        """See `verify`; never compiled."""
        mixed = mix(tree, chunks)
        if self.block_rows:
            check_chains(self.backend, mixed.depths, mixed.counts, 0)
        rows = pack_nodes(self.cache, mixed.depths, mixed.words, mixed.counts, 0, self.backend, mixed.rows)
        assert rows is not None
        ends = [first + len(c.tokens) - 1 for first, c in zip(mixed.starts, chunks, strict=True) if c.last]
        last = torch.tensor(ends, dtype=torch.int64, device=self.device)  # [C]
        keep = torch.cat([mixed.nodes, last]).sort()
        unread = [] if len(keep.values) else [0]  # some models' heads want a row
        output = self._forward(rows.pick(mixed.tokens), rows, keep.values if not unread else last.new_zeros(1))
        # what was kept, as it was asked for: [T + C]
        logits = output.logits[0, : len(keep.values)][keep.indices.argsort()]
        wanted = iter(logits[len(mixed.nodes) :])
        for first, chunk in zip(mixed.starts, chunks, strict=True):
            chunk.logits = next(wanted) if chunk.last else None
            chunk.hidden = {layer: x[0, first : first + len(chunk.tokens)] for layer, x in output.hidden.items()}

        def seated(found: Tensor) -> Tensor:
            """`[T, E]` -> `[B, N, E]`."""
            places = found.new_zeros(tree.batch_size * tree.max_nodes, found.shape[-1])
            return places.index_copy_(0, mixed.homes, found).view(tree.batch_size, tree.max_nodes, -1)

        hidden = {layer: seated(x[0, mixed.nodes]) for layer, x in output.hidden.items()}
        return TargetOutput(seated(logits[: len(mixed.nodes)]), hidden)

    def over(self, model: PreTrainedModel) -> Target:
        """A Target of another model on this one's KV, with lengths of its own: a model of some of the same layers. It
        is valid until this one is opened anew, and runs without `compile` and `exact`: what it writes is a draft's.
        """
        made = copy(self)
        made.model, made.cache = model, self.cache.twin()
        made._configs, made.hidden_layers, made._taps, made._compiled = attention_configs(model), (), {}, None
        made.block_rows = 0
        return made

    def _nothing(self, batch: int, nodes: int) -> TargetOutput:
        """What comes of no live node at all: zeros, without a forward."""
        hidden = torch.zeros(batch, nodes, self.width, device=self.device)
        logits = torch.zeros(batch, nodes, self.vocab_size, device=self.device)
        return TargetOutput(logits, dict.fromkeys(self.hidden_layers, hidden))

    def commit(self, verdict: Verdict) -> None:
        """Keep the accepted path's KV; the root's is part of it."""
        self.cache.commit(verdict.path, verdict.num_accepted)

    @torch.inference_mode()
    def append(self, chunks: Sequence[Chunk]) -> None:
        """Keep all of the chunks' KV."""
        numbers = torch.tensor([(c.slot, len(c.tokens)) for c in chunks], device=self.device)  # [C, 2]
        self.cache.append(numbers[:, 0], numbers[:, 1])

    @torch.inference_mode()
    def release(self, slot: int) -> None:
        """The request in `slot` has ended."""
        self.cache.release(slot)

    def _forward(self, tokens: Tensor, rows: Rows, keep: Tensor | None = None) -> TargetOutput:
        """`tokens` `[R]`; logits `[1, R, V]`, or of the rows `keep` alone; hidden `[1, R, H]`."""
        if self.block_rows:
            return in_blocks(self._pass, tokens, rows, self.block_rows, keep)
        return self._pass(tokens, rows, keep)

    def _pass(self, tokens: Tensor, rows: Rows, keep: Tensor | None) -> TargetOutput:
        """See `_forward`; the model's one."""
        taken: dict[int, Tensor] = {}
        hooks = [module.register_forward_hook(inspection.tap(taken, layer)) for layer, module in self._taps.items()]
        positions = rows.positions
        if self.max_positions:  # nodes past the end are never emitted; they only have to have some position
            positions = positions.clamp(max=self.max_positions - 1)
        extra: dict[str, Any] = {} if keep is None else {"logits_to_keep": keep}
        try:
            with evaluating(self.model), plugged_in(self._configs):
                logits = self.model(
                    input_ids=tokens[None],
                    position_ids=positions[None],
                    past_key_values=CacheView(self.cache, rows.places),
                    use_cache=True,
                    specdec_rows=rows.visible,
                    **extra,
                ).logits
        finally:
            for hook in hooks:
                hook.remove()
        return TargetOutput(logits, taken)


def attach(drafter: Drafter, target: Target) -> Drafter:
    """The drafter as it works with that target: see Drafter."""
    made: Drafter = drafter.attach(target) if hasattr(drafter, "attach") else drafter
    return made
