"""A target, a drafter and a rule, looked over and put together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from specdec import loading, registry
from specdec.arrivals import Arrival
from specdec.cache import Paging
from specdec.capture import CapturedStep, rehearse
from specdec.core import AcceptanceRule, Drafter
from specdec.decode import decode
from specdec.exact import check_settings
from specdec.metrics import DecodingStats
from specdec.phase_clock import PhaseClock
from specdec.request import Generation, Request
from specdec.sampling import SamplingParams
from specdec.serving import Serving
from specdec.serving import serve as serve_in_flight
from specdec.serving_settings import ServingSettings
from specdec.step import Step
from specdec.target import Target, attach

VOCABULARY_SLACK = 1024  # models of one family pad their embeddings differently


class Engine:
    """A target, a drafter and a rule, looked over and ready to serve requests of token ids."""

    def __init__(
        self,
        model: PreTrainedModel,
        drafter: object,
        tree: object,
        acceptance: object,
        *,
        backend: str = "auto",
        compile: bool = False,
        exact: bool = False,
        allow_targets: Collection[str] = (),
    ):
        self.rule = make_rule(acceptance, allow_targets)
        made = make_drafter(drafter, tree, allow_targets)
        check_fit(made, model)
        self._captures = compile and model.device.type == "cuda"
        layers = made.needs.hidden_layers
        if exact and self._captures:
            check_settings("auto", compile)
        self.target = Target(
            model, backend=backend, hidden_layers=layers, compile=compile and not self._captures, exact=exact
        )
        self.drafter = attach(made, self.target)
        self._latest: object = None
        self._captured: CapturedStep | None = None  # serves later runs too, as long as its buffers are large enough

    def warmup(self, slots: int = 1, max_length: int = 2048, sampling: SamplingParams | None = None) -> None:
        """See `SpeculativeDecoder.warmup`."""
        self._latest = None
        if self.target.device.type != "cpu":
            longest = min(max_length, self.target.max_positions or max_length)
            rehearse(self._step(slots, longest), sampling or SamplingParams())
            return
        self.target.warmup(slots, self.drafter.needs.room)
        if warmup := getattr(self.drafter, "warmup", None):
            warmup(slots)

    def _step(self, capacity: int, max_length: int, paging: Paging | None = None) -> Step:
        """Empty slots for texts of that length: so many, or more."""
        if self._captures:
            return self._captured_step(capacity, max_length, paging)
        return Step(self.target, self.drafter, self.rule, capacity, max_length, paging)

    def _captured_step(self, capacity: int, max_length: int, paging: Paging | None) -> CapturedStep:
        step = self._captured
        fits = step is not None and step.capacity >= capacity and step.max_length >= max_length
        if step is None or not fits or step.paging != paging or step.stale:
            if step is not None and step.paging == paging:
                capacity, max_length = max(capacity, step.capacity), max(max_length, step.max_length)
            step = self._captured = None  # its graphs and buffers go before others come
            step = self._captured = CapturedStep(
                self.target, self.drafter, self.rule, capacity, max_length, paging=paging
            )
        step.reset()
        return step

    def run(
        self, requests: Sequence[Request], stats: DecodingStats, slots: int | None = None
    ) -> Iterator[tuple[Generation, list[int]]]:
        """Serve requests, all at once or in `slots` slots; yields new tokens after every step.

        Raises:
            RuntimeError: a later run has begun, and has taken over the slots.
        """
        if not requests:
            return
        self._latest = mine = object()
        clock = PhaseClock(stats, self.target.device)
        longest = max(len(r.prompt) + r.max_new_tokens for r in requests)
        capacity = min(slots or len(requests), len(requests))
        step = self._step(capacity, longest)
        clock.lap("prefill")  # making room is part of a text's beginning, as it is in other engines' times
        steps = decode(step, requests, stats, capacity, clock)
        while self._latest is mine:
            try:
                yield next(steps)
            except StopIteration:
                return
        raise RuntimeError("this decoder has begun another text since; finish one first, or make a second decoder")

    def run_many(
        self, requests: Iterator[Arrival], stats: DecodingStats, settings: ServingSettings
    ) -> Iterator[Generation]:
        """Serve requests in flight, as many at once as there are slots and pages for; yields each as it ends.

        Raises:
            ValueError: there is no memory for a single page.
            RuntimeError: a later run has begun, and has taken over the slots.
        """
        self._latest = mine = object()
        paging = settings.paging(self.target, self.drafter, whole=self.target.compiles)
        run = self._step(settings.slots, settings.length(self.target), paging)
        serving = Serving(run, requests, settings, stats)
        ended = serve_in_flight(serving)
        try:
            while self._latest is mine:
                try:
                    yield next(ended)
                except StopIteration:
                    return
        finally:
            serving.taken_over = self._latest is not mine
            ended.close()
            if self._latest is mine and not self._captures:
                self.target.close()
        raise RuntimeError("this decoder has begun another text since; finish one first, or make a second decoder")


def serve(
    engine: Engine, requests: Sequence[Request], streamer: BaseStreamer | None = None
) -> tuple[list[list[int]], DecodingStats]:
    """Every request's new tokens. The streamer, which has had the prompt, is ended even after an error."""
    stats = DecodingStats()
    texts: list[list[int]] = [[] for _ in requests]
    try:
        for generation, tokens in engine.run(requests, stats):
            texts[generation.index] += tokens
            if streamer is not None and tokens:
                streamer.put(torch.tensor(tokens))
    finally:
        if streamer is not None:
            streamer.end()
    return texts, stats


def make_drafter(drafter: object, tree: object = None, allow_targets: Collection[str] = ()) -> Drafter:
    """See `generate`.

    Raises:
        ValueError: unknown, or it takes no tree.
    """
    if loading.names_model(drafter):
        drafter = loading.load_model(str(drafter))
    if isinstance(drafter, PreTrainedModel):
        drafter = {"_target_": "specdec.drafters.draft_model.DraftModel", "model": drafter}
    policy = None if tree is None else registry.build("tree", tree, allow_targets=allow_targets)
    for name in ("depth", "max_nodes", "fixed_shape", "branching", "grow", "prune") if policy is not None else ():
        if not hasattr(policy, name):
            raise ValueError(f"tree {policy!r} has no {name}; give a name in conf/tree, or a specdec.core.TreePolicy")
    if policy is not None:
        registry.check_takes_tree(drafter, allow_targets)
    settings = {} if policy is None else {"tree": policy}
    made: Drafter = registry.build("drafter", drafter, allow_targets=allow_targets, **settings)
    for name in ("needs", "open", "start", "propose", "observe"):
        if not hasattr(made, name):
            raise ValueError(f"drafter {made!r} has no {name}; see specdec.core.Drafter for what a drafter needs")
    return made


def make_rule(acceptance: object, allow_targets: Collection[str] = ()) -> AcceptanceRule:
    """See `generate`.

    Raises:
        ValueError: unknown, or not an acceptance rule.
    """
    rule: AcceptanceRule = registry.build("acceptance", acceptance, allow_targets=allow_targets)
    if not callable(rule) or not hasattr(rule, "lossless") or not hasattr(rule, "shared_noise"):
        raise ValueError(
            f"acceptance {rule!r} is no acceptance rule; see specdec.core.AcceptanceRule for what one needs"
        )
    return rule


def check_fit(drafter: Drafter, model: PreTrainedModel) -> None:
    """A drafter that says its `vocab_size` must have the target's, up to padding of the embedding, and one that says
    its `hidden_size` (of the hidden states it reads) exactly the target's. One that was made with a `tokenizer` needs
    the target's own, where that lies beside the model.

    Raises:
        ValueError: it has another.
    """
    for part in getattr(drafter, "drafters", ()):
        check_fit(part, model)
    size, width = getattr(drafter, "hidden_size", None), model.config.get_text_config().hidden_size
    if size is not None and size != width:
        raise ValueError(
            f"the drafter was made for hidden states of {size}, the target has {width}; use one made for this target"
        )
    own, wanted = getattr(drafter, "vocab_size", None), model.config.get_text_config().vocab_size
    if own is not None and abs(own - wanted) >= min(VOCABULARY_SLACK, wanted // 8):
        raise ValueError(
            f"the drafter has a vocabulary of {own} tokens, the target of {wanted}; use a drafter made for this target"
        )
    mark, name = getattr(drafter, "tokenizer", None), model.name_or_path
    if mark is not None and loading.has_tokenizer(name) and mark != loading.fingerprint(loading.load_tokenizer(name)):
        raise ValueError(f"the drafter's datastore was made with another tokenizer than that of {name}; build it again")
