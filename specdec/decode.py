"""The loop: propose, verify, accept, commit, observe. Everything else here is requests entering and leaving slots."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList, StopStringCriteria

from specdec.core import AcceptanceRule, Drafter, TargetOutput, Verdict
from specdec.inspection import NAN_LOGITS
from specdec.metrics import DecodingStats, PhaseClock, RequestStats
from specdec.sampling import Sampler, SamplingParams
from specdec.target import Target
from specdec.tree.token_tree import TokenTree


@dataclass(slots=True)
class Request:
    """A prompt and how to continue it.

    Attributes:
        prompt: token ids, at least one.
        max_new_tokens: never more than these.
        sampling: how tokens are chosen.
        eos: ids that end the text; the one that did is its last token.
        processors: transformers' logits processors; each call sees one node's own history.
        criteria: transformers' stopping criteria, asked after every token.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    eos: frozenset[int] = frozenset()
    processors: LogitsProcessorList | None = None
    criteria: StoppingCriteriaList | None = None

    @property
    def criteria_window(self) -> int:
        """How many of the last tokens the criteria look at: few for stop strings, 0 (all) for what users give."""
        criteria = self.criteria or []
        if not all(isinstance(c, StopStringCriteria) for c in criteria):
            return 0
        return max((c.maximum_token_len for c in criteria), default=0)


@dataclass(slots=True)
class Generation:
    """A request being served, and then its result. `ids` is prompt and text."""

    index: int
    request: Request
    ids: list[int]
    stats: RequestStats
    finished: bool = False

    @property
    def new_ids(self) -> list[int]:
        """The text without the prompt."""
        return self.ids[len(self.request.prompt) :]

    def extend(self, tokens: Sequence[int]) -> int:
        """Append what belongs to the text, up to an end; returns how many tokens that were."""
        for count, token in enumerate(tokens, 1):
            self.ids.append(token)
            if self._ends(token):
                self.finished = True
                return count
        return len(tokens)

    def _ends(self, token: int) -> bool:
        if token in self.request.eos or len(self.ids) - len(self.request.prompt) >= self.request.max_new_tokens:
            return True
        if not self.request.criteria:
            return False
        seen = torch.tensor([self.ids[-self.request.criteria_window :]])  # [1, L]; -0 is the whole text
        return bool(self.request.criteria(seen, None).any())


class Decoding:
    """Requests in slots, and the step that moves all of them on.

    Args:
        target, drafter, rule: the three parts.
        capacity: slots, B.
        max_length: longest prompt plus new tokens of any request.
        stats: where counts and times go.
    """

    def __init__(
        self,
        target: Target,
        drafter: Drafter,
        rule: AcceptanceRule,
        capacity: int,
        max_length: int,
        stats: DecodingStats,
    ):
        self.target, self.drafter, self.rule, self.stats = target, drafter, rule, stats
        self.max_nodes = drafter.needs.max_nodes
        target.open(capacity, max_length, self.max_nodes)
        self.state = drafter.open(capacity, max_length, target.device)
        self.sampler = Sampler(capacity, target.vocab_size, target.device)
        self.slots: list[Generation | None] = [None] * capacity
        self.roots = torch.full((capacity,), -1, dtype=torch.int64, device=target.device)  # [B]
        self.clock = PhaseClock(stats, target.device)

    @property
    def free(self) -> list[int]:
        """Slots without a request."""
        return [slot for slot, generation in enumerate(self.slots) if generation is None]

    @property
    def serving(self) -> list[int]:
        """Slots with a request."""
        return [slot for slot, generation in enumerate(self.slots) if generation is not None]

    @torch.inference_mode()
    def admit(self, slots: Sequence[int], generations: Sequence[Generation]) -> list[tuple[Generation, list[int]]]:
        """Prefill requests into free slots and emit each one's first token."""
        self.clock.lap("host")
        started = time.perf_counter()
        prompts = [list(g.request.prompt) for g in generations]
        for slot, generation in zip(slots, generations, strict=True):
            generation.stats.start = started
            self.slots[slot] = generation
            self.sampler.start(slot, generation.request.sampling, generation.ids, generation.request.processors)
        output = self.target.prefill(slots, prompts)
        self.drafter.start(self.state, list(slots), prompts, output)
        first = self._first_tokens(slots, output)
        self.roots[list(slots)] = first
        self.sampler.commit(self.roots.clamp_min(0)[:, None])
        self.clock.lap("prefill")
        return [self._emit(s, [t]) for s, t in zip(slots, first.tolist(), strict=True)]

    def _first_tokens(self, slots: Sequence[int], output: TargetOutput) -> Tensor:
        """The prompt's last token is a tree of one node: the rule that draws every other token draws the first too."""
        index = torch.tensor(slots, device=self.target.device)
        vocab_size = output.logits.shape[-1]
        logits = output.logits.new_zeros(len(self.slots), 1, vocab_size).index_copy(0, index, output.logits)
        _refuse_nan(output.logits)
        tree = TokenTree.roots(torch.full_like(self.roots, -1).index_fill(0, index, 0))
        return self.rule(tree, logits, self.sampler.at(self.target.lengths - 1, 1, slots)).next_token[index]

    @torch.inference_mode()
    def step(self) -> list[tuple[Generation, list[int]]]:
        """One step of every slot; returns the requests with their new tokens."""
        lap = self.clock.lap
        sampling = self.sampler.at(self.target.lengths, self.max_nodes, self.serving)
        lap("host")
        tree = self.drafter.propose(self.state, self.roots, sampling.draft_noise(self.rule.shared_noise))
        lap("draft")
        if tree.max_nodes > self.max_nodes:
            raise ValueError(f"the drafter proposed {tree.max_nodes} nodes; its needs.max_nodes says {self.max_nodes}")
        output = self.target.verify(tree)
        lap("verify")
        verdict = self.rule(tree, output.logits, sampling)
        lap("accept")
        self.target.commit(verdict)
        lap("commit")
        self.drafter.observe(self.state, tree, verdict, output)
        lap("draft")
        emissions = self._collect(tree, verdict, output)
        lap("host")
        return emissions

    def _collect(self, tree: TokenTree, verdict: Verdict, output: TargetOutput) -> list[tuple[Generation, list[int]]]:
        """Read the step to the host, once, and put its tokens into the texts."""
        self.stats.forwards += 1
        emitted = verdict.emitted(tree)  # [B, D]
        self.sampler.commit(emitted)
        self.roots = torch.where(self.roots >= 0, verdict.next_token, -1)
        last = verdict.path.gather(1, (verdict.num_accepted.long() - 1).clamp_min(0)[:, None]).clamp_min(0)  # [B, 1]
        offered = (tree.parents == last).any(-1)
        height = tree.depths.amax(-1)
        damaged = output.logits[torch.arange(len(last), device=last.device), last[:, 0]].isnan().any(-1)
        columns = [verdict.num_accepted, tree.sizes, height, offered, damaged]
        read = torch.cat([torch.stack([c.long() for c in columns], 1), emitted], 1).tolist()
        emissions = []
        for slot, (count, size, deep, more, broken, *tokens) in enumerate(read):
            generation = self.slots[slot]
            if generation is None:
                continue
            if not count:
                raise ValueError("the drafter proposed a tree of size 0 for a running text; propose its root at least")
            if broken:
                raise ValueError(f"the target's {NAN_LOGITS}")
            emission = self._emit(slot, tokens[:count])
            generation.stats.record(count, len(emission[1]), size, deep, bool(more))
            emissions.append(emission)
        return emissions

    def _emit(self, slot: int, tokens: list[int]) -> tuple[Generation, list[int]]:
        generation = self.slots[slot]
        assert generation is not None
        now = time.perf_counter()
        generation.stats.first = generation.stats.first or now
        generation.stats.end = now
        kept = tokens[: generation.extend(tokens)]
        if generation.finished:
            self.slots[slot] = None
            self.roots[slot] = -1
            self.sampler.stop(slot)
            self.target.release(slot)
        return generation, kept


def decode(
    target: Target,
    drafter: Drafter,
    rule: AcceptanceRule,
    requests: Iterable[Request],
    *,
    slots: int,
    max_length: int,
    stats: DecodingStats | None = None,
    on_open: Callable[[Decoding], None] | None = None,
) -> Iterator[tuple[Generation, list[int]]]:
    """Serve `requests` in `slots` slots; yields (request, its new tokens) after every step, until all have ended.

    Raises:
        ValueError: the model's logits are NaN.
    """
    stats = stats if stats is not None else DecodingStats()
    decoding = Decoding(target, drafter, rule, slots, max_length, stats)
    if on_open:
        on_open(decoding)
    queue = enumerate(requests)
    while True:
        entered = [_enter(stats, index, request) for _, (index, request) in zip(decoding.free, queue, strict=False)]
        yield from ((generation, []) for generation in entered if generation.finished)
        if entering := [generation for generation in entered if not generation.finished]:
            yield from decoding.admit(decoding.free[: len(entering)], entering)
        if decoding.serving:
            yield from decoding.step()
        elif not entered:
            break
        decoding.clock.skip()
    decoding.clock.finish()


def _enter(stats: DecodingStats, index: int, request: Request) -> Generation:
    generation = Generation(index, request, list(request.prompt), RequestStats(prompt_tokens=len(request.prompt)))
    generation.finished = request.max_new_tokens == 0
    stats.requests.append(generation.stats)
    return generation


def _refuse_nan(logits: Tensor) -> None:
    """`logits` `[..., V]` that a token was drawn from."""
    if logits.isnan().any():
        raise ValueError(f"the target's {NAN_LOGITS}")
