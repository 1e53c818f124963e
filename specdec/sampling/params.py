"""SamplingParams: how a user wants tokens to be chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


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
