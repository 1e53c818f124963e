"""transformers' own `generate`: plain, assisted by a draft model, and prompt lookup."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from specdec.experiments.engines.base import Answer, Draft, Setting
from specdec.sampling import SamplingParams


class Transformers:
    """conf/backend/transformers.yaml: in this process, on the very weights that specdec runs."""

    name: ClassVar[str] = "transformers"
    drafters: ClassVar[tuple[str, ...]] = ("none", "ngram", "draft_model")

    def check(self, draft: Draft, sampling: SamplingParams, batch: int) -> None:
        """See OtherEngine."""
        if batch > 1:
            raise ValueError(f"transformers drafts for one request at a time; measure.batch is {batch}, expected 1")
        if draft.kind == "ngram" and draft.ngrams[0] != 1:
            raise ValueError(
                f"transformers' prompt lookup goes down to single tokens; min_ngram is {draft.ngrams[0]}, expected 1"
            )

    def open(self, draft: Draft, setting: Setting) -> Generate:
        """See OtherEngine."""
        lookup: dict[str, int] = {}
        if draft.kind == "ngram":
            lookup = {"prompt_lookup_num_tokens": draft.length, "max_matching_ngram_size": draft.ngrams[1]}
        assistant = setting.drafting(draft).model if draft.kind == "draft_model" else None
        return Generate(setting.model, assistant, draft.length, lookup)


class Generate:
    """See Opened.

    Args:
        model: the target.
        assistant: the draft model; None for none.
        length: tokens it drafts at a time, always so many.
        lookup: settings of `generate` for prompt lookup; empty for none.
    """

    own_memory = False

    def __init__(self, model: PreTrainedModel, assistant: PreTrainedModel | None, length: int, lookup: dict[str, int]):
        self._model, self._assistant, self._length, self._lookup = model, assistant, length, lookup
        self.versions: Mapping[str, str] = {"transformers": transformers.__version__}

    @torch.inference_mode()
    def serve(
        self, prompts: Sequence[list[int]], max_new_tokens: int, sampling: SamplingParams, eos: frozenset[int]
    ) -> tuple[list[Answer], int]:
        """See Opened. A pass's draft is what the target was given besides the last token."""
        (prompt,) = prompts
        ids = torch.tensor([prompt], device=self._model.device)  # [1, L]
        settings = GenerationConfig(
            max_new_tokens=max_new_tokens, eos_token_id=sorted(eos) or None, pad_token_id=0,
            **choosing(sampling), **self._lookup,
        )  # fmt: skip
        widths: list[int] = []
        assistant = {} if self._assistant is None else {"assistant_model": self._assistant}
        clock = Clock(ids.device)
        hook = self._model.register_forward_pre_hook(
            lambda _, args, kwargs: widths.append((args[0] if args else kwargs["input_ids"]).shape[1]),
            with_kwargs=True,
        )
        try:
            with plain_settings(self._model), _drafting(self._assistant, self._length), _seeded(sampling):
                clock.start()
                self._model.generate(
                    ids, attention_mask=torch.ones_like(ids), generation_config=settings, streamer=clock, **assistant
                )
        finally:
            hook.remove()
        drafted = [width - 1 for width in widths[1 : len(clock.passes)]]
        accepted = [min(len(tokens) - 1, d) for tokens, d in zip(clock.passes[1:], drafted, strict=True)]
        return [Answer(clock.passes, clock.times, list(zip(drafted, accepted, strict=True)))], len(drafted)

    def close(self) -> None:
        """Holds nothing of its own."""


class Clock(BaseStreamer):
    """Takes the tokens of every pass, and the time."""

    def __init__(self, device: torch.device):
        self.passes: list[list[int]] = []
        self.times: list[float] = []
        self._device, self._prompt, self._began = device, True, 0.0

    def start(self) -> None:
        """Now."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._began = time.perf_counter()

    def put(self, value: Tensor) -> None:
        """The prompt, which is left out; then the tokens of each pass."""
        if self._prompt:
            self._prompt = False
            return
        self.passes.append(value.flatten().tolist())
        self.times.append(time.perf_counter() - self._began)

    def end(self) -> None:
        """Nothing is left."""


def choosing(sampling: SamplingParams) -> dict[str, Any]:
    """Our settings in transformers' words; what is off is off there, too."""
    chosen: dict[str, Any] = {"repetition_penalty": sampling.repetition_penalty}
    if sampling.temperature == 0:
        return chosen | {"do_sample": False}
    chosen |= {"do_sample": True, "temperature": sampling.temperature, "top_k": sampling.top_k}
    return chosen | {"top_p": sampling.top_p, "min_p": sampling.min_p or None}


@contextmanager
def plain_settings(model: PreTrainedModel) -> Iterator[None]:
    """What a call leaves open, `generate` takes from the model's own settings (a penalty, a shortest length): those are
    put aside meanwhile."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def _drafting(assistant: PreTrainedModel | None, length: int) -> Iterator[None]:
    """Always `length` tokens, however sure the assistant is."""
    if assistant is None:
        yield
        return
    with plain_settings(assistant):
        fixed = {"num_assistant_tokens": length, "num_assistant_tokens_schedule": "constant"}
        for name, value in (fixed | {"assistant_confidence_threshold": 0.0}).items():
            setattr(assistant.generation_config, name, value)
        yield


@contextmanager
def _seeded(sampling: SamplingParams) -> Iterator[None]:
    """torch's generators begin at the request's seed, and are put back."""
    if sampling.temperature == 0:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(sampling.seed)
        yield
