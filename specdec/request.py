"""A request, and what becomes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList, StopStringCriteria
from transformers.generation.streamers import BaseStreamer

from specdec.request_stats import RequestStats
from specdec.sampling import SamplingParams


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
        streamer: gets the new tokens of every step, in `generate_many`; the prompt, if it had any, before that.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    eos: frozenset[int] = frozenset()
    processors: LogitsProcessorList | None = None
    criteria: StoppingCriteriaList | None = None
    streamer: BaseStreamer | None = None

    @property
    def criteria_window(self) -> int:
        """How many of the last tokens the criteria look at: few for stop strings, 0 (all) for what users give."""
        criteria = self.criteria or []
        if not all(isinstance(c, StopStringCriteria) for c in criteria):
            return 0
        return max((c.maximum_token_len for c in criteria), default=0)


@dataclass(slots=True)
class Generation:
    """A request being served, and then its result. `ids` is prompt and text, `error` why it ended before its end."""

    index: int
    request: Request
    ids: list[int]
    stats: RequestStats
    finished: bool = False
    error: Exception | None = None

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
