"""Sampling: the only place where temperature, top-k, top-p, min-p, penalties, processors and noise live.

`SamplingParams` is what a user asks for. `Sampler` holds it for every slot, with what processors need of the text so
far. `StepSampling` is the sampler at one step: rules draw the target's tokens with it, drafters theirs (`DraftNoise`).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from specdec import noise
from specdec.kernels.common.filters.naive import filter_rows
from specdec.tree.token_tree import WORD_BITS, TokenTree

NEGATIVE_INFINITY = float("-inf")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose a token from logits. Applied in the order transformers uses: penalty, processors, the rest.

    Attributes:
        temperature: 0 takes the most likely token.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens with this much probability; 1 keeps all.
        min_p: keep tokens with at least this share of the most likely one's probability; 0 keeps all.
        repetition_penalty: CTRL's penalty on tokens of the prompt and of the text so far; 1 is none.
        seed: the same seed, prompt and settings give the same text, alone or in any batch.

    Raises:
        ValueError: a setting is out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = ("temperature", "top_p", "min_p", "repetition_penalty")
        checks = {name: (_is_number(getattr(self, name)), "a finite number") for name in numbers}
        checks |= {name: (type(getattr(self, name)) is int, "an integer") for name in ("top_k", "seed")}
        self._check(checks)
        self._check(
            {
                "temperature": (self.temperature >= 0, "at least 0 (0 takes the most likely token)"),
                "top_k": (self.top_k >= 0, "at least 0 (0 keeps all tokens)"),
                "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
                "min_p": (0 <= self.min_p < 1, "in [0, 1)"),
                "repetition_penalty": (self.repetition_penalty > 0, "above 0 (1 is no penalty)"),
            }
        )

    def _check(self, checks: Mapping[str, tuple[bool, str]]) -> None:
        for name, (valid, expected) in checks.items():
            if not valid:
                raise ValueError(f"sampling.{name} is {getattr(self, name)!r}; expected {expected}")

    @staticmethod
    def from_dict(values: Mapping[str, object]) -> SamplingParams:
        """From a yaml or a request.

        Raises:
            ValueError: a key is unknown; the message names the known ones.
        """
        known = [f.name for f in fields(SamplingParams)]
        for key in values:
            if key not in known:
                raise ValueError(f"unknown sampling setting {key!r}; expected one of: {', '.join(known)}")
        return SamplingParams(**values)  # type: ignore[arg-type]

    def warpers(self) -> LogitsProcessorList | None:
        """transformers' own warpers for these settings; None where they would not change which token is drawn."""
        if self.temperature == 0:
            return None
        chosen = LogitsProcessorList()
        if self.temperature != 1:
            chosen.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k:
            chosen.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            chosen.append(TopPLogitsWarper(self.top_p))
        if self.min_p > 0:
            chosen.append(MinPLogitsWarper(self.min_p))
        return chosen or None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


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
        self.all_greedy, self.penalised, self._filtered = True, False, False
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
        if self.device.type != "cpu":  # once sampled, always prepared for it: every kind of step has graphs of its own
            greedy, penalised = greedy and self.all_greedy, penalised or self.penalised
            filtered = filtered or self._filtered
        self.all_greedy, self.penalised, self._filtered = greedy, penalised, filtered
        slots: dict[SamplingParams, list[int]] = {}  # same settings, seeds apart -> slots
        warps = self.device.type == "cpu" or self._processors  # else settings are read on the device
        for slot, params in enumerate(self._params):
            if warps and params.warpers():
                slots.setdefault(replace(params, seed=0, repetition_penalty=1.0), []).append(slot)
        self._groups = [(torch.tensor(s, device=self.device), w) for p, s in slots.items() if (w := p.warpers())]
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
            if processors is None:
                continue
            for node, tokens in enumerate(path[slot].tolist()):
                text = self._texts[slot] + [t for t in tokens if t >= 0]
                ids = torch.tensor([text], device=scores.device)  # [1, L]
                scores[slot, node] = processors(ids, scores[slot, node][None])[0]
        return scores

    def at(self, positions: Tensor, max_depth: int, slots: Sequence[int]) -> StepSampling:
        """The sampler at a step of `slots`: roots at `positions` `[B]`, at most `max_depth` levels or children."""
        if self._stale:
            self._refresh()
        return StepSampling(self, positions, max_depth, slots)


def _warp(scores: Tensor, warpers: LogitsProcessorList) -> Tensor:
    """`[b, M, V]` through transformers' warpers, which take rows `[n, V]` and do not look at ids."""
    warped: Tensor = warpers(None, scores.flatten(0, 1))
    return warped.view_as(scores)


class StepSampling:
    """Draws for one step. The token drawn at a node of depth d stands at position `positions + d + 1`."""

    def __init__(self, sampler: Sampler, positions: Tensor, max_depth: int, slots: Sequence[int]):
        self._sampler = sampler
        self._slots = slots
        self._positions = positions
        self._max_depth = max_depth
        self._keys: dict[int, Tensor] = {}
        self._chances: dict[int, Tensor] = {}  # depth -> [B, children]

    @property
    def raw(self) -> bool:
        """Whether every slot takes the most likely token of unprocessed logits."""
        return self._sampler.raw

    def keys(self, stream: int, depth: int) -> Tensor:
        """`[2, B]` int32."""
        if stream not in self._keys or depth >= self._keys[stream].shape[2]:  # what is pruned may have been deeper
            steps = torch.arange(1, max(self._max_depth, 2 * depth) + 2, device=self._positions.device)
            self._keys[stream] = noise.keys(self._sampler.seeds, self._positions[:, None] + steps, stream)
        return self._keys[stream][:, :, depth]

    def draft_keys(self, depth: int, count: int) -> Tensor:
        """`[2, B, count]` int32, for `count` nodes of a drafter's frontier at `depth`: its own noise, not the target's.

        It belongs to the step and the node, not to the position. A rule that judges from the leaves up has looked at
        drafts below the place where the step ends, and below refused siblings: noise that came again at the same
        position, or below another sibling, would no longer be independent of what was decided.
        """
        nodes = torch.arange(count, device=self._positions.device) + (depth << 16)
        return noise.keys(self.keys(noise.DRAFT_STREAM, 0), nodes[None], noise.DRAFT_STREAM)

    def draw(self, logits: Tensor, depth: int, path: Tensor) -> Tensor:
        """The target's own token after nodes at `depth`: `[B]` int64.

        Args:
            logits: `[B, V]`.
            depth: of the nodes.
            path: `[B, depth]` int64, drafted tokens from below the root to each node; -1 where a walk has stopped.
        """
        if self.raw:
            return logits.argmax(-1)
        return self._argmax(self._process(logits, path), depth, noise.TARGET_STREAM)

    def probs(self, logits: Tensor, path: Tensor) -> Tensor:
        """The target's distribution: `[B, V]` float32, one token's at temperature 0. Arguments as for `draw`."""
        return self._distribution(self._process(logits, path))

    def _process(self, logits: Tensor, path: Tensor) -> Tensor:
        """`[B, V]` float32. Users' processors are called where a walk goes on, and nowhere else."""
        slots = self._slots
        if self._sampler.has_processors and path.shape[1]:
            slots = [slot for slot, last in enumerate(path[:, -1].tolist()) if last >= 0 and slot in slots]
        return self._sampler.process(logits[:, None], path[:, None], slots)[:, 0]

    def draw_from(self, probs: Tensor, depth: int) -> Tensor:
        """A draw from unnormalised `probs` `[B, V]`, as for a residual: `[B]` int64."""
        return self._argmax(probs.log(), depth, noise.RESIDUAL_STREAM)

    def accept(self, probability: Tensor, depth: int, turn: int) -> Tensor:
        """`[B]` bool, true with `probability` `[B]`, for the child tried in `turn` below a node at `depth`.

        A rule that may accept less than it has looked at counts all its turns at depth 0, whose position no other step
        has, and draws from what is left there, too.
        """
        if depth not in self._chances or turn >= self._chances[depth].shape[1]:
            count = max(self._max_depth, 2 * turn)
            self._chances[depth] = noise.uniform(self.keys(noise.ACCEPT_STREAM, depth), count)
        return self._chances[depth][:, turn] < probability

    @property
    def at_once(self) -> bool:
        """Whether rules use kernels that read settings on the device: on a GPU, where a walk in torch would either ask
        the host how far it has come or go on to the depth of the tree. Users' processors are Python and want the walk.
        """
        return self._positions.device.type != "cpu" and not self._sampler.has_processors

    @property
    def positions(self) -> Tensor:
        """`[B]` int32, of the roots."""
        return self._positions

    @property
    def settings(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """seeds `[2, B]`, temperature, top_k, top_p, min_p `[B]`: what those kernels want to know, in fixed buffers."""
        sampler = self._sampler
        return sampler.seeds, sampler.temperature, sampler.top_k, sampler.top_p, sampler.min_p

    def penalised(self, tree: TokenTree, logits: Tensor) -> Tensor:
        """`[B, N, V]` logits of all nodes after the repetition penalty, each with its own path as its history."""
        if not self._sampler.penalised:
            return logits
        place = torch.arange(tree.max_nodes, device=logits.device)
        on_path = (tree.words[..., place // WORD_BITS] >> (place % WORD_BITS)) & 1 == 1  # [B, N, N]
        on_path[..., 0] = False  # the root is text
        path = torch.where(on_path, tree.tokens[:, None], -1)
        return self._sampler.penalise(logits.float(), path)

    def draft_noise(self, shared: bool) -> DraftNoise:
        """What a drafter draws with: the target's noise (`shared`) or its own."""
        return DraftNoise(self, shared)

    def _argmax(self, scores: Tensor, depth: int, stream: int) -> Tensor:
        greedy = scores.argmax(-1)
        if self._sampler.all_greedy:
            return greedy
        drawn = (scores + noise.gumbel(self.keys(stream, depth), scores.shape[-1])).argmax(-1)
        return torch.where(self._sampler.greedy, greedy, drawn)

    def _distribution(self, scores: Tensor) -> Tensor:
        """`[B, ..., V]` scores to probabilities."""
        probs = scores.softmax(-1)
        one_hot = torch.zeros_like(probs).scatter_(-1, scores.argmax(-1, keepdim=True), 1.0)
        greedy = self._sampler.greedy.view(-1, *[1] * (probs.ndim - 1))
        return torch.where(greedy, one_hot, probs)


class DraftNoise:
    """How a drafter chooses children. The same call serves every rule.

    Under a rule with shared noise, children are the tokens that the target would draw if its logits were the
    drafter's. Under any other, they are drawn without replacement from the drafter's distribution, which is returned.
    """

    def __init__(self, step: StepSampling, shared: bool):
        self._step = step
        self._sampler = step._sampler
        self.shared = shared

    @property
    def vocab_size(self) -> int:
        """V of the target: what `choose` expects."""
        return self._sampler.vocab_size

    def choose(
        self, logits: Tensor, depth: int, count: int, path: Tensor, fixed: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Children of every node of a frontier.

        Args:
            logits: `[B, F, V]` of the drafter, on the device of the target's logits.
            depth: of the frontier; the root is 0.
            count: children for each, K.
            path: `[B, F, depth]` int64, drafted tokens from below the root to each node, -1 padded.
            fixed: the tree keeps children because of what they are: take the most likely, draw nothing.

        Returns:
            tokens `[B, F, K]` int64, the best first; if `fixed`, their log-probabilities `[B, F, K]` float32, to rank
            them by, else None; the distribution they were drawn from `[B, F, V]`, None if they were not drawn.
        """
        scores = logits.float() if self._sampler.raw else self._sampler.process(logits, path)
        if self._sampler.all_greedy or (fixed and not self.shared):
            values, tokens = _top(scores, count)
            return tokens, values - scores.logsumexp(-1, keepdim=True) if fixed else None, None
        if self.shared:
            keys = self._step.keys(noise.TARGET_STREAM, depth)[..., None]  # [2, B, 1]
        else:
            keys = self._step.draft_keys(depth, scores.shape[1])  # [2, B, F]
        drawn = noise.gumbel(keys, scores.shape[-1])  # [B, 1 or F, V]
        perturbed = torch.where(self._sampler.greedy[:, None, None], scores, scores + drawn)
        values, tokens = _top(perturbed, count)
        if self.shared:
            return tokens, values - perturbed.logsumexp(-1, keepdim=True) if fixed else None, None
        return tokens, None, self._step._distribution(scores)


def _top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` best of `[..., V]`, values and indices; a maximum costs a third of a selection."""
    values, indices = scores.max(-1, keepdim=True) if count == 1 else scores.topk(count, dim=-1)
    return values, indices


def as_params(sampling: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    """One `SamplingParams` per request.

    Raises:
        ValueError: a list of another length was given.
    """
    if sampling is None or isinstance(sampling, SamplingParams):
        return [sampling or SamplingParams()] * count
    if len(sampling) != count:
        raise ValueError(f"sampling has {len(sampling)} entries; expected one SamplingParams, or one per row ({count})")
    return list(sampling)
