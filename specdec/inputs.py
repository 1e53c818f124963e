"""Checks what a user gave, and makes requests' parts of it: prompts, ends, processors, criteria."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    LogitsProcessor,
    LogitsProcessorList,
    PrefixConstrainedLogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
    StopStringCriteria,
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from specdec.sampling import SamplingParams, as_params

STATEFUL = (UnbatchedClassifierFreeGuidanceLogitsProcessor, SynthIDTextWatermarkLogitsProcessor)
Given = ParamSpec("Given")
Got = TypeVar("Got")


def sampling_apart(function: Callable[Given, Got]) -> Callable[Given, Got]:
    """`function`, which tells whoever gives it `temperature=` and its like, as transformers takes them, that they go
    into `sampling=`.

    Raises:
        TypeError: as Python's for an argument that it does not have.
    """
    known = [field.name for field in fields(SamplingParams)]
    foreign = {*known, "do_sample"} - set(inspect.signature(function).parameters)

    @wraps(function)
    def called(*args: Given.args, **kwargs: Given.kwargs) -> Got:
        if wrong := next((name for name in kwargs if name in foreign), None):
            example = f"{wrong}={kwargs[wrong]!r}" if wrong in known else "temperature=1.0"
            raise TypeError(f"{function.__name__} has no argument {wrong!r}; give sampling=SamplingParams({example})")
        return function(*args, **kwargs)

    return called


def prompts_of(input_ids: Tensor, attention_mask: Tensor | None, vocab_size: int) -> list[list[int]]:
    """Rows without their padding."""
    is_tensor = isinstance(input_ids, Tensor)
    if not is_tensor or input_ids.ndim != 2 or input_ids.is_floating_point() or input_ids.dtype == torch.bool:
        got = f"{input_ids.dtype} of shape {list(input_ids.shape)}" if is_tensor else repr(input_ids)
        raise ValueError(f"input_ids is {got}; expected integers of shape [batch, length]")
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {list(attention_mask.shape)}; expected input_ids' {list(input_ids.shape)}"
        )
    keep = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    prompts = [
        [t for t, k in zip(row, kept, strict=True) if k]
        for row, kept in zip(input_ids.tolist(), keep.tolist(), strict=True)
    ]
    if not prompts:
        raise ValueError("input_ids has no rows; give at least one prompt")
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"the prompt in row {row} is empty; give at least one token, for example the bos token")
        check_vocabulary(prompt, vocab_size, f"row {row}")
    return prompts


def check_vocabulary(ids: Sequence[int], vocab_size: int, what: str) -> None:
    if min(ids) < 0 or max(ids) >= vocab_size:
        wrong = next(t for t in ids if not 0 <= t < vocab_size)
        raise ValueError(f"{what} has token id {wrong}; the model's ids go from 0 to {vocab_size - 1}")


def check_count(max_new_tokens: object) -> None:
    if type(max_new_tokens) is not int or max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens!r}; expected an integer of at least 0")


def settings_of(sampling: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    """See `as_params`; what is neither is refused here."""
    several = isinstance(sampling, Sequence) and not isinstance(sampling, str)
    given = list(sampling) if several else [] if sampling is None else [sampling]  # type: ignore[arg-type]
    for each in given:
        if not isinstance(each, SamplingParams):
            raise ValueError(f"sampling is {each!r}; expected specdec.SamplingParams(...), or one per row")
    return as_params(sampling, count)


def row_processors(processors: Sequence[LogitsProcessor] | None, row: int) -> LogitsProcessorList | None:
    """The processors for one row of a batch: those of transformers that hold something per row get that row's.

    Raises:
        ValueError: a processor keeps a state from token to token, which drafted tokens would spoil.
    """
    chosen = LogitsProcessorList()
    for processor in processors or ():
        if isinstance(processor, STATEFUL):
            raise ValueError(
                f"{type(processor).__name__} keeps a state from token to token, and speculation looks at several "
                "continuations of a text; it cannot be used"
            )
        own: Any = copy.copy(processor)
        if isinstance(processor, PrefixConstrainedLogitsProcessor):
            allowed = processor._prefix_allowed_tokens_fn
            own._prefix_allowed_tokens_fn = lambda _, text, allowed=allowed: allowed(row, text)
        elif isinstance(processor, EncoderRepetitionPenaltyLogitsProcessor):
            own.encoder_input_ids = processor.encoder_input_ids[row : row + 1]
        elif isinstance(processor, EncoderNoRepeatNGramLogitsProcessor):
            own.batch_size, own.generated_ngrams = 1, processor.generated_ngrams[row : row + 1]
        elif isinstance(getattr(processor, "prompt_ignore_length", None), Tensor):
            own.prompt_ignore_length = own.prompt_ignore_length[row : row + 1]
        else:
            own = processor
        chosen.append(own)
    return chosen or None


def stop_criteria(
    given: StoppingCriteriaList | None,
    stop_strings: str | Sequence[str] | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> StoppingCriteriaList | None:
    criteria = StoppingCriteriaList(given or [])
    strings = [stop_strings] if isinstance(stop_strings, str) else list(stop_strings or [])
    if strings:
        if not all(strings):
            raise ValueError("a stop string is empty; every text would end at once")
        if tokenizer is None:
            raise ValueError("stop_strings needs the tokenizer; pass tokenizer=")
        criteria.append(StopStringCriteria(tokenizer, strings))
    return criteria or None


def eos_ids(model: PreTrainedModel, given: int | Sequence[int] | None = None) -> frozenset[int]:
    """Ids that end a text: those given, or the model's own."""
    config = model.generation_config
    ids = given if given is not None else (config.eos_token_id if config is not None else None)
    if ids is None:
        ids = getattr(model.config.get_text_config(), "eos_token_id", None)
    return frozenset() if ids is None else frozenset([ids] if isinstance(ids, int) else ids)


def check_eos(given: object, vocab_size: int) -> None:
    """`eos_token_id` as a user gave it; the model's own may be any."""
    ids = [given] if isinstance(given, int) else [] if given is None else given
    if not isinstance(ids, Collection) or isinstance(ids, str) or not all(type(i) is int for i in ids):
        raise ValueError(f"eos_token_id is {given!r}; expected ids: an integer, or a list of them ([] for none)")
    for token in ids:
        if not 0 <= token < vocab_size:
            raise ValueError(
                f"eos_token_id {token} is not in the vocabulary; the model's ids go from 0 to {vocab_size - 1}"
            )


def check_pad(given: object) -> None:
    """`pad_token_id` as a user gave it. It need not be in the vocabulary: nothing reads it."""
    if given is not None and type(given) is not int:
        raise ValueError(f"pad_token_id is {given!r}; expected an id: an integer")


def pad_id(model: PreTrainedModel, given: int | None, eos: frozenset[int]) -> int:
    if given is not None:
        return given
    config = model.generation_config
    own = config.pad_token_id if config is not None else None
    return own if own is not None else min(eos, default=0)


def pad_texts(input_ids: Tensor, texts: list[list[int]], pad: int) -> Tensor:
    """`[B, L + n]`."""
    longest = max(map(len, texts))
    rows = [text + [pad] * (longest - len(text)) for text in texts]
    new = torch.tensor(rows, dtype=input_ids.dtype, device=input_ids.device).view(len(texts), longest)
    return torch.cat([input_ids, new], 1)
