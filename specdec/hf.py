"""Speculation inside transformers: `model.generate(..., custom_generate=specdec.hf.generate, drafter="ngram")`.

transformers prepares processors, stopping criteria and lengths as for its own decoding, and this takes the place of its
decoding loop. Greedy text is the same token for token; sampled text has the same distribution. Rows are served one by
one: a processor or criterion sees one row at a time, `[1, L]`, padding included, and never several together.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    MinPLogitsWarper,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.generation.configuration_utils import GenerationMode

from specdec.engine import Engine, serve
from specdec.inputs import pad_id, pad_texts, prompts_of, row_processors
from specdec.inspection import check_architecture, check_length, max_positions
from specdec.metrics import DecodingStats
from specdec.request import Request
from specdec.sampling import SamplingParams

# What transformers prepares for its own loop; everything else a caller passed to the model would be ignored.
PREPARED = {"attention_mask", "position_ids", "cache_position", "past_key_values", "use_cache", "logits_to_keep"}
# The settings of SamplingParams, in the order in which both sides apply them.
WARPERS = {
    TemperatureLogitsWarper: "temperature",
    TopKLogitsWarper: "top_k",
    TopPLogitsWarper: "top_p",
    MinPLogitsWarper: "min_p",
}


@dataclass
class SpeculativeOutput(GenerateDecoderOnlyOutput):
    """What `return_dict_in_generate=True` gives: transformers' output (without cache and scores) and our counts."""

    stats: DecodingStats | None = None


def generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    *,
    drafter: object = "ngram",
    tree: object = None,
    acceptance: object = "coupled",
    seed: int | None = None,
    backend: str = "auto",
    exact: bool = False,
    allow_targets: Collection[str] = (),
    **model_kwargs: Any,
) -> SpeculativeOutput | Tensor:
    """Decode for transformers' `generate`. Not called directly: pass it as `custom_generate`.

    Args:
        model: as in `specdec.generate`.
        input_ids: `[B, L]`, expanded for `num_return_sequences`.
        logits_processor: temperature, top-k, top-p, min-p and repetition penalty become SamplingParams, others are
            called at every node.
        stopping_criteria: end-of-text ids and lengths are read from it, others are asked after every token.
        generation_config: greedy decoding or sampling.
        drafter, tree, acceptance, backend, exact, allow_targets: as in `specdec.generate`.
        seed: row i samples with seed + i; None draws one from torch's generator, as transformers' own sampling would.
        model_kwargs: what transformers prepared.

    Raises:
        ValueError: a setting has no meaning here; nothing is ignored.
    """
    caller = _caller()
    _check_config(generation_config, caller)
    _check_kwargs(model_kwargs, caller)
    check_architecture(model)
    mask = model_kwargs.get("attention_mask")
    prompts = prompts_of(input_ids, mask, model.config.get_text_config().vocab_size)
    _check_positions(model_kwargs.get("position_ids"), mask, input_ids)
    length, eos, criteria = _ends(stopping_criteria)
    count = max(length - input_ids.shape[1], 0)
    check_length(model, max(map(len, prompts)) + count, max_positions(model))
    first = int(torch.randint(2**31, ()).item()) if seed is None else seed
    requests = [
        _request(row, input_ids[row], prompt, count, eos, logits_processor, criteria, generation_config, first + row)
        for row, prompt in enumerate(prompts)
    ]
    engine = Engine(model, drafter, tree, acceptance, backend=backend, exact=exact, allow_targets=allow_targets)
    texts, stats = serve(engine, requests, caller.get("streamer"))
    own_pad = getattr(generation_config, "_pad_token_tensor", None)
    sequences = pad_texts(input_ids, texts, pad_id(model, None if own_pad is None else int(own_pad), eos))
    return (
        SpeculativeOutput(sequences=sequences, stats=stats) if generation_config.return_dict_in_generate else sequences
    )


def _caller() -> dict[str, Any]:
    """The local variables of transformers' `generate`: it hands no streamer to a callable, nor says that there is one,
    and whoever reads from the streamer would wait for ever."""
    frame = sys._getframe(2)
    own = frame.f_code.co_name == "generate" and str(frame.f_globals.get("__name__")).startswith("transformers.")
    return dict(frame.f_locals) if own else {}


def _check_config(config: GenerationConfig, caller: dict[str, Any]) -> None:
    mode = config.get_generation_mode(caller.get("assistant_model"))
    if mode == GenerationMode.ASSISTED_GENERATION:
        raise ValueError("assistant_model and prompt_lookup_num_tokens are transformers' own speculation; use drafter=")
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise ValueError(
            f"{mode.value.replace('_', ' ')} cannot be combined with specdec; use greedy decoding or sampling"
        )
    if caller.get("synced_gpus"):
        raise ValueError("synced_gpus is not supported by specdec: every process would need the same number of steps")
    if config.cache_implementation == "quantized":
        raise ValueError("specdec keeps its own cache; cache_implementation='quantized' cannot be honoured, remove it")
    asked = [f"output_{name}" for name in ("scores", "logits", "attentions", "hidden_states")]
    asked = [name for name in asked if getattr(config, name, False)]
    if config.return_dict_in_generate and asked:
        raise ValueError(f"specdec does not return {', '.join(asked)}; remove it, or decode without custom_generate")


def _check_kwargs(model_kwargs: dict[str, Any], caller: dict[str, Any]) -> None:
    others = sorted(k for k, v in model_kwargs.items() if k not in PREPARED and v is not None)
    if others:
        raise ValueError(f"specdec cannot hand {', '.join(others)} to the model; it takes input_ids and attention_mask")
    cache = model_kwargs.get("past_key_values")
    filled = cache is not None and hasattr(cache, "get_seq_length") and int(cache.get_seq_length()) > 0
    if filled or (caller.get("kwargs") or {}).get("past_key_values") is not None:
        raise ValueError("specdec keeps its own cache; past_key_values cannot be used, give the whole prompt")


def _check_positions(positions: Tensor | None, mask: Tensor | None, input_ids: Tensor) -> None:
    keep = torch.ones_like(input_ids) if mask is None else mask
    expected = keep.long().cumsum(-1) - 1
    if positions is not None and not torch.where(keep != 0, positions == expected, True).all():
        raise ValueError("position_ids other than those of the attention mask cannot be used with specdec; remove them")


def _ends(criteria: StoppingCriteriaList) -> tuple[int, frozenset[int], list[StoppingCriteria]]:
    """The greatest length, ids that end a text, and the criteria that are neither."""
    lengths, eos, others = [], set(), []
    for criterion in criteria:
        if type(criterion) is MaxLengthCriteria:
            lengths.append(int(criterion.max_length))
        elif type(criterion) is EosTokenCriteria:
            eos |= set(criterion.eos_token_id.flatten().tolist())
        else:
            others.append(criterion)
    if not lengths:
        raise ValueError("there is no limit to the length; pass max_new_tokens or max_length")
    return min(lengths), frozenset(eos), others


def _request(
    row: int,
    given: Tensor,  # [L], padding included
    prompt: list[int],
    count: int,
    eos: frozenset[int],
    processors: LogitsProcessorList,
    criteria: Sequence[StoppingCriteria],
    config: GenerationConfig,
    seed: int,
) -> Request:
    padded = len(prompt) < len(given)
    sampling, others = to_sampling(processors, bool(config.do_sample), seed, padded)
    own = row_processors(LogitsProcessorList(others), row) or []
    if padded:
        own = [_AsGiven(p, given, len(prompt)) for p in own]
        criteria = [_AsGiven(c, given, len(prompt)) for c in criteria]
    return Request(
        prompt, count, sampling, eos, LogitsProcessorList(own) or None, StoppingCriteriaList(criteria) or None
    )


def to_sampling(
    processors: Sequence[LogitsProcessor], do_sample: bool, seed: int = 0, padded: bool = False
) -> tuple[SamplingParams, list[LogitsProcessor]]:
    """Processors as SamplingParams, as far as that changes nothing: a penalty at the beginning of the list, and
    temperature, top-k, top-p and min-p at its end, in this order. Returns the rest too, which goes in between."""
    rest = list(processors)
    settings: dict[str, Any] = {"temperature": 1.0} if do_sample else {}
    if rest and type(rest[0]) is RepetitionPenaltyLogitsProcessor:
        ignored = rest[0].prompt_ignore_length  # an int hides the beginning of the prompt, a tensor each row's padding
        if isinstance(ignored, Tensor) or (not ignored and not padded):
            settings["repetition_penalty"] = float(rest.pop(0).penalty)
    order = list(WARPERS)
    while do_sample and rest and type(rest[-1]) in order:
        warper, name = rest[-1], WARPERS[type(rest[-1])]
        usual = getattr(warper, "filter_value", -torch.inf) == -torch.inf
        if name != "top_k" and getattr(warper, "min_tokens_to_keep", 1) != 1:  # top-k has it in its k
            usual = False
        if not usual or (name == "min_p" and warper.min_p >= 1):
            break
        settings[name] = getattr(warper, name)
        order = order[: order.index(type(warper))]
        rest.pop()
    known = {f.name for f in fields(SamplingParams)}
    return SamplingParams(seed=seed, **{k: v for k, v in settings.items() if k in known}), rest


class _AsGiven:
    """Shows a processor or criterion the row as it was given: transformers counts padding as part of the text."""

    def __init__(self, wrapped: Any, given: Tensor, prompt_length: int):
        self._wrapped, self._given, self._prompt_length = wrapped, given[None], prompt_length

    def __call__(self, input_ids: Tensor, scores: Any) -> Any:
        given = self._given.to(input_ids.device)
        return self._wrapped(torch.cat([given, input_ids[:, self._prompt_length :]], 1), scores)
