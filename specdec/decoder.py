"""SpeculativeDecoder: text in, text out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import torch
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList

from specdec import loading, registry
from specdec.arrivals import Arrival
from specdec.engine import Engine, serve
from specdec.inputs import (
    check_count,
    check_vocabulary,
    eos_ids,
    row_processors,
    sampling_apart,
    settings_of,
    stop_criteria,
)
from specdec.inspection import check_length
from specdec.many import Chat, Results, TextRequest, described
from specdec.metrics import DecodingStats
from specdec.request import Request
from specdec.sampling import SamplingParams
from specdec.serving_settings import ServingSettings
from specdec.text import TextPieces
from specdec.turn import Turn


@dataclass(frozen=True, slots=True)
class TextOutput:
    """What `SpeculativeDecoder.generate` returns.

    Attributes:
        text: the continuation; a list of them if a list of prompts was given.
        tokens: new token ids of every prompt.
        stats: counts, times and metrics.
    """

    text: str | list[str]
    tokens: list[list[int]]
    stats: DecodingStats


class SpeculativeDecoder:
    """Text in, text out. Make one, use it many times.

    Args:
        model: a transformers causal LM.
        tokenizer: its tokenizer.
        drafter, tree, acceptance, backend, compile, exact, allow_targets: as in `generate`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        drafter: object = "ngram",
        tree: object = None,
        acceptance: object = "coupled",
        backend: str = "auto",
        compile: bool = False,
        exact: bool = False,
        allow_targets: Collection[str] = (),
    ):
        self.model, self.tokenizer = model, tokenizer
        self.engine = Engine(
            model, drafter, tree, acceptance, backend=backend, compile=compile, exact=exact, allow_targets=allow_targets
        )

    @staticmethod
    def from_pretrained(
        name: str | Path,
        *,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        trust_remote_code: bool = False,
        quantize: str | None = None,
        **settings: Any,
    ) -> SpeculativeDecoder:
        """Load a model and its tokenizer: a zoo name, a folder or a hub id.

        `device` ... `quantize` as in `loading.load_model`; other arguments as for the class.
        """
        inspect.signature(SpeculativeDecoder).bind(None, None, **settings)  # before the weights are loaded
        allowed, drafter = settings.get("allow_targets", ()), settings.get("drafter", "ngram")
        for kind in ("tree", "acceptance"):
            registry.check_spec(kind, settings.get(kind), allowed)
        if loading.names_model(drafter):
            loading.model_path(drafter)
        else:
            registry.check_spec("drafter", drafter, allowed)
            if settings.get("tree") is not None:
                registry.check_takes_tree(drafter, allowed)
        tokenizer = loading.load_tokenizer(name, trust_remote_code)
        model = loading.load_model(name, device, dtype, trust_remote_code, quantize)
        return SpeculativeDecoder(model, tokenizer, **settings)

    def warmup(self, slots: int = 1, max_length: int = 2048, sampling: SamplingParams | None = None) -> None:
        """With compile=True: compile, or on a GPU capture, every size of trees now, so that no request waits for it,
        with a progress bar on stderr. On a GPU kernels are compiled for these sizes without it, too.

        Args:
            slots: requests at once, as prompts in a list or as `generate_many`'s slots; every number is compiled for
                itself.
            max_length: of a prompt with its continuation. On a GPU longer ones need buffers, and graphs, of their own.
            sampling: of the requests to come; greedy if None. What matters on a GPU is whether they sample at all, and
                whether there are a penalty or filters: numbers may differ.
        """
        self.engine.warmup(slots, max_length, sampling)

    @sampling_apart
    def generate(
        self,
        prompts: str | Chat | Sequence[str | Chat],
        *,
        max_new_tokens: int = 128,
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        stop_strings: str | Sequence[str] | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
    ) -> TextOutput:
        """Continue one prompt or several at once. A chat (list of messages) goes through the tokenizer's template.

        Raises:
            ValueError: as `generate`.
        """
        single = isinstance(prompts, str) or _is_chat(prompts)
        several: Sequence[Any] = [prompts] if single else prompts
        ids = [self._encode(p) for p in several]
        settings = settings_of(sampling, len(ids))
        criteria = stop_criteria(stopping_criteria, stop_strings, self.tokenizer)
        requests = [
            self._request(prompt, max_new_tokens, settings[row], row_processors(logits_processor, row), criteria)
            for row, prompt in enumerate(ids)
        ]
        tokens, stats = serve(self.engine, requests)
        texts = [self.tokenizer.decode(t, skip_special_tokens=True) for t in tokens]
        return TextOutput(texts[0] if single else texts, tokens, stats)

    def generate_many(
        self,
        requests: Iterable[str | Chat | Sequence[int] | TextRequest | Mapping[str, Any] | None],
        *,
        max_new_tokens: int = 128,
        sampling: SamplingParams | None = None,
        slots: int = 32,
        max_length: int | None = None,
        memory: int | float | None = None,
        page: int | None = None,
        rows: int | None = None,
        sharing: bool = True,
        stats: DecodingStats | None = None,
        watch: Callable[[Turn], None] | None = None,
    ) -> Results:
        """Continue any number of prompts in flight: requests enter and leave at every step.

        What is wrong with one request, or goes wrong in it, is its result's `error`; the others never notice. A text
        does not depend on the other requests, nor on what follows here, but for rounding (see docs/serving.md).

        Args:
            requests: prompts, TextRequests with settings of their own, or mappings of a TextRequest's fields. They are
                taken one by one as there is room for them: the iterable may be long, but should not let us wait. Where
                none has come yet it gives None, and is asked again after the next step, or a millisecond if there is
                none.
            max_new_tokens, sampling: of the requests that do not say; greedy if None.
            slots: how many are served at once, at most.
            max_length: tokens of a prompt and its continuation, at most; None for 4096, or the model's positions if
                they are fewer. Drafters have buffers of that length for every slot.
            memory: for the KV of all requests, a draft model's or head's own included: bytes, or a share of the free
                memory (0.0 to 1.0); None for what all slots can use, but at most half of what is free. Where it runs
                out, the request that came last gives up its pages, and goes on when there is room.
            page: tokens of a page of KV; None for 64, or with compile=True on the CPU for a slot's room.
            rows: of a forward pass, at most, drafts not counted: what running requests leave of them reads prompts;
                None for 256, on a GPU 2048.
            sharing: prompts with the same beginning share its KV. Not for drafters that read the target's hidden
                states.
            stats: where counts and times of the whole run go, and of every request.
            watch: called before every step with a `Turn`: pages that are held, and who is in which slot.

        Returns:
            An iterator of results, each as its request ends, with `cancel(index)` and `close()`.

        Raises:
            ValueError: a setting is out of range, `requests` are none, or there is no memory for a page.
        """
        if isinstance(requests, str | bytes | Mapping | TextRequest) or _is_ids(requests) or _is_messages(requests):
            raise ValueError(
                f"generate_many takes several requests, got one: {described(requests)}; give a list of it, or use "
                "generate"
            )
        if not isinstance(requests, Iterable):
            raise ValueError(f"requests is {described(requests)}; expected an iterable of prompts or TextRequests")
        check_count(max_new_tokens)
        (default,) = settings_of(sampling, 1)
        keep = stats is not None
        settings = ServingSettings(slots, max_length, memory, page, rows, sharing, keep, watch=watch)
        prompts: dict[int, object] = {}
        arrivals = self._arrivals(iter(requests), prompts, max_new_tokens, default)
        ended = self.engine.run_many(arrivals, stats if stats is not None else DecodingStats(), settings)
        return Results(ended, prompts, settings.cancelled, self._text)

    def _arrivals(
        self, requests: Iterator[object], prompts: dict[int, object], most: int, default: SamplingParams
    ) -> Iterator[Arrival]:
        """`most` new tokens and `default` are for requests that do not say."""
        row = -1
        for given in requests:
            if given is None:
                yield None
                continue
            row += 1
            prompts[row] = given.get("prompt") if isinstance(given, Mapping) else getattr(given, "prompt", given)
            try:
                each = TextRequest.of(given)
                criteria = stop_criteria(each.stopping_criteria, each.stop_strings, self.tokenizer)
                processors = row_processors(each.logits_processor, row)
                (sampling,) = settings_of(default if each.sampling is None else each.sampling, 1)
                count = most if each.max_new_tokens is None else each.max_new_tokens
                request = self._request(self._encode(each.prompt), count, sampling, processors, criteria)
                yield replace(request, streamer=each.streamer), None
            except Exception as error:
                yield Request([], 0), error

    def _text(self, tokens: list[int]) -> str:
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    @sampling_apart
    def stream(
        self,
        prompt: str | Chat,
        *,
        max_new_tokens: int = 128,
        sampling: SamplingParams | None = None,
        stop_strings: str | Sequence[str] | None = None,
        stats: DecodingStats | None = None,
    ) -> Iterator[str]:
        """Pieces of text as they are decided. Joined, they are what `generate` returns. Stop reading at any time."""
        criteria = stop_criteria(None, stop_strings, self.tokenizer)
        (chosen,) = settings_of(sampling, 1)
        request = self._request(self._encode(prompt), max_new_tokens, chosen, None, criteria)
        return self._stream(request, stats if stats is not None else DecodingStats())

    def _stream(self, request: Request, stats: DecodingStats) -> Iterator[str]:
        pieces = TextPieces(self.tokenizer)
        for _, tokens in self.engine.run([request], stats):
            if piece := pieces.push(tokens):
                yield piece
        if piece := pieces.flush():
            yield piece

    def _encode(self, prompt: str | Chat | Sequence[int]) -> list[int]:
        if isinstance(prompt, str):
            ids: list[int] = self.tokenizer(prompt, verbose=False)["input_ids"]  # what is too long is told below
        elif _is_ids(prompt):
            ids = [int(token) for token in prompt]
        elif not _is_chat(prompt):
            raise ValueError(
                f"a prompt is {described(prompt)}; expected a string, a chat (a list of messages with role and "
                "content), or a list of token ids"
            )
        elif self.tokenizer.chat_template is None:
            raise ValueError("a chat was given, but the tokenizer has no chat template; give a string")
        else:
            ids = self.tokenizer.apply_chat_template(
                list(prompt), add_generation_prompt=True, tokenize=True, return_dict=False
            )
        if not ids:
            raise ValueError("a prompt is empty; give at least one token, for example the tokenizer's bos token")
        return ids

    def _request(
        self,
        ids: list[int],
        max_new_tokens: int,
        sampling: SamplingParams,
        processors: LogitsProcessorList | None,
        criteria: StoppingCriteriaList | None,
    ) -> Request:
        check_count(max_new_tokens)
        check_vocabulary(ids, self.engine.target.vocab_size, "a prompt")
        check_length(self.model, len(ids) + max_new_tokens, self.engine.target.max_positions)
        return Request(ids, max_new_tokens, sampling, eos_ids(self.model, None), processors, criteria)


def _is_ids(prompt: object) -> TypeGuard[Sequence[int]]:
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray):
        return False
    return bool(prompt) and all(type(token) is int for token in prompt)


def _is_chat(prompts: object) -> bool:
    return isinstance(prompts, Sequence) and bool(prompts) and isinstance(prompts[0], Mapping)


def _is_messages(requests: object) -> bool:
    """A chat, and not a list of requests as mappings."""
    return isinstance(requests, Sequence) and _is_chat(requests) and "role" in requests[0]
