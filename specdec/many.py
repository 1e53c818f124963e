"""What goes into `generate_many`, and what comes out of it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from specdec.request import Generation
from specdec.request_stats import RequestStats
from specdec.sampling import SamplingParams

Chat = Sequence[Mapping[str, str]]  # [{"role": "user", "content": "..."}]


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A prompt for `generate_many`, with settings of its own. Fields as the arguments of `generate`.

    Attributes:
        prompt: a string, a chat, or token ids.
        max_new_tokens, sampling: None for what `generate_many` was given.
        streamer: gets the prompt, new tokens as they come, and its `end`.
    """

    prompt: str | Chat | Sequence[int]
    max_new_tokens: int | None = None
    sampling: SamplingParams | None = None
    stop_strings: str | Sequence[str] | None = None
    logits_processor: LogitsProcessorList | None = None
    stopping_criteria: StoppingCriteriaList | None = None
    streamer: BaseStreamer | None = None

    @staticmethod
    def of(given: object) -> TextRequest:
        """Itself, a mapping of its fields, or a prompt.

        Raises:
            ValueError: it is none of these, a key is unknown, or there is no prompt.
        """
        if isinstance(given, TextRequest):
            return given
        if not isinstance(given, Mapping):
            if not isinstance(given, Sequence) or isinstance(given, bytes | bytearray):
                raise ValueError(
                    f"a request is {described(given)}; expected a string, a chat (a list of messages), a list of token "
                    "ids, a TextRequest, or a mapping of its fields"
                )
            prompt: Any = given
            return TextRequest(prompt)
        known = [f.name for f in fields(TextRequest)]
        for key in given:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, 1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                raise ValueError(f"a request has the unknown key {key!r}; {hint}expected: {', '.join(known)}")
        if "prompt" not in given:
            raise ValueError(f"a request has no prompt, but {', '.join(given) or 'nothing'}; give it one")
        values = dict(given)
        if isinstance(values.get("sampling"), Mapping):
            values["sampling"] = SamplingParams.from_dict(values["sampling"])
        return TextRequest(**values)


@dataclass(frozen=True, slots=True)
class TextResult:
    """What `generate_many` yields.

    Attributes:
        index: which request it belongs to.
        prompt: that request's, as it was given.
        text: the continuation; where there was an error, as far as it came.
        tokens: its ids.
        prompt_ids: the prompt's ids.
        stats: counts and times of this request.
        error: what ended it before its end; None for nothing. A request that was cancelled has a
            `concurrent.futures.CancelledError`.
    """

    index: int
    prompt: object
    text: str
    tokens: list[int]
    prompt_ids: list[int]
    stats: RequestStats
    error: Exception | None = field(default=None)

    @property
    def sequences(self) -> Tensor:
        """`[1, L + n]` int64: prompt and continuation, as `generate` returns a batch of one."""
        return torch.tensor([[*self.prompt_ids, *self.tokens]], dtype=torch.int64)


def described(given: object) -> str:
    """What somebody gave, and its type, shortly."""
    return f"{given!r:.60} ({type(given).__name__})"


class Results(Iterator[TextResult]):
    """Results of `generate_many`, each as its request ends. Stop reading at any time: nothing goes on.

    Args:
        ended: the run.
        prompts: of the requests that are being served, by index; results take theirs.
        cancelled: where the run looks for who is to end.
        decode: ids to text.
    """

    def __init__(
        self,
        ended: Iterator[Generation],
        prompts: dict[int, object],
        cancelled: set[int],
        decode: Callable[[list[int]], str],
    ):
        self._ended, self._prompts, self._cancelled, self._decode = ended, prompts, cancelled, decode

    def __next__(self) -> TextResult:
        generation = next(self._ended)
        tokens = generation.new_ids
        return TextResult(
            generation.index,
            self._prompts.pop(generation.index),
            self._decode(tokens),
            tokens,
            list(generation.request.prompt),
            generation.stats,
            generation.error,
        )

    def cancel(self, index: int) -> None:
        """Request number `index` ends at the next step, with what it has and a CancelledError; also one that has not
        been taken from the iterable. Nothing happens to one that has ended."""
        self._cancelled.add(index)

    def close(self) -> None:
        """End all requests, without results."""
        close = getattr(self._ended, "close", None)
        if close is not None:
            close()
