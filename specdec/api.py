"""The library's face on tensors: `generate`. On text it is `SpeculativeDecoder` (decoder.py)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from specdec.engine import Engine, serve
from specdec.inputs import (
    check_count,
    check_eos,
    check_pad,
    eos_ids,
    pad_id,
    pad_texts,
    prompts_of,
    row_processors,
    sampling_apart,
    settings_of,
    stop_criteria,
)
from specdec.inspection import check_architecture, check_length, max_positions
from specdec.metrics import DecodingStats
from specdec.request import Request
from specdec.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class GenerateOutput:
    """What `generate` returns.

    Attributes:
        sequences: `[B, L + n]` int64, the prompts as given, then the new tokens, right padded.
        stats: counts, times and metrics.
    """

    sequences: Tensor
    stats: DecodingStats


@sampling_apart
def generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    drafter: object = "ngram",
    tree: object = None,
    acceptance: object = "coupled",
    sampling: SamplingParams | Sequence[SamplingParams] | None = None,
    max_new_tokens: int = 128,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    stop_strings: str | Sequence[str] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    logits_processor: LogitsProcessorList | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    streamer: BaseStreamer | None = None,
    backend: str = "auto",
    compile: bool = False,
    exact: bool = False,
    allow_targets: Collection[str] = (),
) -> GenerateOutput:
    """Continue prompts with speculative decoding.

    Args:
        model: any transformers causal LM with replaceable attention; it is left as it was.
        input_ids: `[B, L]` int64, left or right padded.
        attention_mask: `[B, L]`, 0 where padded; None if nothing is.
        drafter: a name in conf/drafter, a mapping with `_target_`, a dotted path, a Drafter, or a transformers model
            or the name of one (zoo name, folder or hub id), which then is the draft model.
        tree: shape of the drafts (name, mapping or TreePolicy) for drafters that take one; None for their own.
        acceptance: a name in conf/acceptance, or a rule.
        sampling: for all rows, or one per row. The same seed gives the same text in every row.
        max_new_tokens: never more new tokens than these.
        eos_token_id: ids that end a text; None for the model's own.
        pad_token_id: fills up shorter texts; None for the model's own, or its first eos.
        stop_strings: a text ends with the token that completes one of these; needs `tokenizer`.
        tokenizer: only for `stop_strings`.
        logits_processor: transformers' processors, applied at every node with that node's own path as its history: the
            row's prompt without padding, and the text so far. They see one row at a time.
        stopping_criteria: transformers' criteria, asked after every token.
        streamer: a transformers streamer, for one row.
        backend: of tree attention.
        compile: verify with compiled graphs: faster steps after some tens of seconds for each size of trees. They stay
            with the model, so that later calls find them. On a GPU the step is captured in CUDA graphs, which only a
            `SpeculativeDecoder` keeps.
        exact: no rounding tells speculation and batches from plain decoding in the same mode: the same logits, bit for
            bit, and with the greedy or coupled rule the same text (see docs/lossless.md). Slower; on a GPU for chains
            only, unless backend="packed".
        allow_targets: see `registry.build`.

    Raises:
        ValueError: anything about the input, the model or the settings is wrong; the message says what to do.
    """
    check_architecture(model)
    prompts = prompts_of(input_ids, attention_mask, model.config.get_text_config().vocab_size)
    check_count(max_new_tokens)
    check_eos(eos_token_id, model.config.get_text_config().vocab_size)
    check_pad(pad_token_id)
    eos = eos_ids(model, eos_token_id)
    check_length(model, max(map(len, prompts)) + max_new_tokens, max_positions(model))
    criteria = stop_criteria(stopping_criteria, stop_strings, tokenizer)
    settings = settings_of(sampling, len(prompts))
    requests = [
        Request(prompt, max_new_tokens, settings[row], eos, row_processors(logits_processor, row), criteria)
        for row, prompt in enumerate(prompts)
    ]
    engine = Engine(
        model, drafter, tree, acceptance, backend=backend, compile=compile, exact=exact, allow_targets=allow_targets
    )
    if streamer is not None:
        if len(prompts) > 1:
            raise ValueError(f"a streamer takes one row at a time; got {len(prompts)} rows")
        streamer.put(input_ids.cpu())
    texts, stats = serve(engine, requests, streamer)
    return GenerateOutput(pad_texts(input_ids, texts, pad_id(model, pad_token_id, eos)), stats)
