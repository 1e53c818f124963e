"""The sampling settings of every slot, with what processors need of the text so far."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from specdec import noise
from specdec.kernels.common.filters.naive import filter_rows
from specdec.sampling.params import SamplingParams
from specdec.sampling.step import StepSampling


class Sampler:
    """The sampling settings of every slot.

    Args:
        capacity: slots, B.
        vocab_size: V.
        device: of the logits.
    """

    def __init__(self, capacity: int, vocab_size: int, device: torch.device):
        self.vocab_size = vocab_size
        self.device = device
        self._params = [SamplingParams()] * capacity
        self._processors: dict[int, LogitsProcessorList] = {}  # slot -> the user's own
        self._texts: dict[int, list[int]] = {}  # slot -> prompt and text so far, kept up to date by the loop
        self._present: Tensor | None = None  # [B, V] bool: in the prompt or text; made when a penalty is first used
        self._stale = True  # settings have changed since the last step
        # slot -> what its own processors raised, where somebody wants to know; else it is raised
        self.failures: dict[int, Exception] | None = None
        self.all_greedy, self.some_greedy, self.penalised, self._filtered = True, True, False, False
        # Fixed buffers, which a CUDA graph may hold:
        self.seeds = torch.zeros(2, capacity, dtype=torch.int32, device=device)
        self.greedy = torch.ones(capacity, dtype=torch.bool, device=device)
        self.temperature, self.top_p, self.min_p = (torch.zeros(capacity, device=device) for _ in range(3))
        self.top_k = torch.zeros(capacity, dtype=torch.int32, device=device)
        self._penalties = torch.ones(capacity, device=device)

    def start(
        self, slot: int, params: SamplingParams, text: list[int], processors: LogitsProcessorList | None = None
    ) -> None:
        """A request enters `slot`. `text` is its prompt, a list that the loop goes on appending to."""
        self._params[slot] = params
        self._texts[slot] = text
        self._processors.pop(slot, None)
        if processors:
            self._processors[slot] = processors
        if params.repetition_penalty != 1:
            if self._present is None:
                self._present = torch.zeros(len(self._params), self.vocab_size, dtype=torch.bool, device=self.device)
            self._present[slot] = False
            self._present[slot, text] = True
        self._stale = True

    def reset(self) -> None:
        """No request in any slot."""
        self._params = [SamplingParams()] * len(self._params)
        self._processors.clear()
        self._texts.clear()
        self.failures = None
        self.all_greedy, self.penalised, self._filtered, self._stale = True, False, False, True

    def stop(self, slot: int) -> None:
        """The request in `slot` has ended."""
        self._params[slot] = SamplingParams()
        self._processors.pop(slot, None)
        self._texts.pop(slot, None)
        self._stale = True

    def _refresh(self) -> None:
        """What can be decided on the host once, after requests came or went, rather than at every step."""
        self._stale = False
        self._write_settings()
        penalised = any(p.repetition_penalty != 1 for p in self._params)
        greedy = all(p.temperature == 0 for p in self._params)
        filtered = any(p.temperature and (p.top_k or p.top_p < 1 or p.min_p) for p in self._params)
        self.some_greedy = greedy or any(self._params[slot].temperature == 0 for slot in self._texts)
        if self.device.type != "cpu":  # once sampled, always prepared for it: every kind of step has graphs of its own
            greedy, penalised = greedy and self.all_greedy, penalised or self.penalised
            filtered, self.some_greedy = filtered or self._filtered, True
        self.all_greedy, self.penalised, self._filtered = greedy, penalised, filtered
        slots: dict[tuple[float, ...], list[int]] = {}  # what warpers are made of -> slots
        warps = self.device.type == "cpu" or self._processors  # else settings are read on the device
        for slot, params in enumerate(self._params if warps else ()):
            slots.setdefault((params.temperature, params.top_k, params.top_p, params.min_p), []).append(slot)
        groups = ((s, self._params[s[0]].warpers()) for s in slots.values())
        self._groups = [(torch.tensor(s, device=self.device), w) for s, w in groups if w]
        self.raw = self.all_greedy and not self.penalised and not self._processors

    def _write_settings(self) -> None:
        """The requests' settings into the buffers: one copy to the device, which nobody waits for."""
        numbers = ("temperature", "top_p", "min_p", "top_k", "repetition_penalty")
        rows = [[getattr(p, name) for p in self._params] for name in numbers]
        seeds = noise.seed_words([p.seed for p in self._params], torch.device("cpu"))  # [2, B]
        host = torch.cat([torch.tensor(rows, dtype=torch.float64), seeds.double()])  # [7, B], exact
        if self.device.type == "cuda":
            host = host.pin_memory()
        there = host.to(self.device, non_blocking=True)
        for buffer, row in zip(
            (self.temperature, self.top_p, self.min_p, self.top_k, self._penalties), there, strict=False
        ):
            buffer.copy_(row)
        self.seeds.copy_(there[5:])
        self.greedy.copy_(self.temperature == 0)

    @property
    def kinds(self) -> Hashable:
        """What the host decides by on a GPU: two steps with equal kinds run the same operations there."""
        if self._stale:
            self._refresh()
        return self.all_greedy, self.penalised, self._filtered, self.has_processors

    @property
    def has_processors(self) -> bool:
        """Whether any request brought its own."""
        return bool(self._processors)

    def commit(self, emitted: Tensor) -> None:
        """Tokens `[B, D]` int64 became text (repeats do no harm)."""
        if self.penalised and self._present is not None:
            self._present.scatter_(1, emitted, True)

    def process(self, logits: Tensor, path: Tensor, slots: Sequence[int] = ()) -> Tensor:
        """Processed scores of nodes: `[B, M, V]` float32, -inf where a token is ruled out.

        Args:
            logits: `[B, M, V]`.
            path: `[B, M, E]` int64, the drafted tokens between the root and each node, the node's own included; -1
                padded. With the text so far they are the node's history.
            slots: where to call the processors that users gave. Drafters call none: a guess needs no rules.
        """
        scores = logits.float()
        if self.penalised:
            scores = self.penalise(scores, path)
        if self._processors:
            scores = self._process_rows(scores, path, slots)
        if self.device.type != "cpu" and not self._processors:
            return self._filter(scores)
        for rows, warpers in self._groups:
            if len(rows) == len(scores):
                return _warp(scores, warpers)
            scores = scores.index_copy(0, rows, _warp(scores[rows], warpers))
        return scores

    def _filter(self, scores: Tensor) -> Tensor:
        """What the warpers do to `[B, M, V]`, with settings that are read on the device. For drafts: where two tokens
        are equal at the cut of top-p, they and the target may keep another one."""
        settings = (x[:, None].expand(scores.shape[:2]) for x in (self.temperature, self.top_k, self.top_p, self.min_p))
        if self._filtered:
            return filter_rows(scores, *settings)
        return scores / torch.where(self.greedy, 1.0, self.temperature)[:, None, None]

    def penalise(self, scores: Tensor, path: Tensor) -> Tensor:
        """CTRL's penalty on `[B, M, V]` scores; `path` `[B, M, E]` as for `process`."""
        assert self._present is not None
        present = self._present[:, None].expand_as(scores)  # [B, M, V]
        if path.shape[-1]:
            on_path = torch.zeros_like(present).scatter(2, path.clamp_min(0), path >= 0)
            # a padded entry may overwrite a True of token 0 with False: say so again
            on_path[..., 0] |= (path == 0).any(-1)
            present = present | on_path
        penalty = self._penalties[:, None, None]  # [B, 1, 1]
        return torch.where(present, torch.where(scores < 0, scores * penalty, scores / penalty), scores)

    def _process_rows(self, scores: Tensor, path: Tensor, slots: Sequence[int]) -> Tensor:
        """transformers' processors want rows of equal length, and a node's history is its own: one row at a time."""
        scores = scores.clone()
        for slot in slots:
            processors = self._processors.get(slot)
            if processors is None or (self.failures and slot in self.failures):
                continue
            try:
                for node, tokens in enumerate(path[slot].tolist()):
                    text = self._texts[slot] + [t for t in tokens if t >= 0]
                    ids = torch.tensor([text], device=scores.device)  # [1, L]
                    scores[slot, node] = processors(ids, scores[slot, node][None])[0]
            except Exception as error:
                if self.failures is None:
                    raise
                self.failures.setdefault(slot, error)
        return scores

    def at(self, positions: Tensor, max_depth: int, slots: Sequence[int]) -> StepSampling:
        """The sampler at a step of `slots`: roots at `positions` `[B]`, at most `max_depth` levels or children."""
        if self._stale:
            self._refresh()
        return StepSampling(self, positions, max_depth, slots)


def _warp(scores: Tensor, warpers: LogitsProcessorList) -> Tensor:
    """`[b, M, V]` through transformers' warpers, which take rows `[n, V]` and do not look at ids."""
    rows = scores.flatten(0, 1)
    for warper in warpers:  # the list's own call looks up every warper's signature
        rows = warper(None, rows)
    return rows.view_as(scores)
