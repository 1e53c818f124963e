"""The library's face: `generate` on tensors, `SpeculativeDecoder` on text."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
from transformers.generation.streamers import BaseStreamer

from specdec import loading
from specdec.core import AcceptanceRule, Drafter
from specdec.decode import Generation, Request, decode
from specdec.inspection import check_architecture, check_length, max_positions
from specdec.metrics import DecodingStats, RequestStats
from specdec.sampling import SamplingParams, as_params
from specdec.target import Target

VOCABULARY_SLACK = 1024  # models of one family pad their embeddings differently
STATEFUL = (UnbatchedClassifierFreeGuidanceLogitsProcessor, SynthIDTextWatermarkLogitsProcessor)

Chat = Sequence[Mapping[str, str]]  # [{"role": "user", "content": "..."}]


@dataclass(frozen=True, slots=True)
class GenerateOutput:
    """What `generate` returns.

    Attributes:
        sequences: `[B, L + n]` int64, the prompts as given, then the new tokens, right padded.
        stats: counts, times and metrics.
    """

    sequences: Tensor
    stats: DecodingStats


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


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A prompt for `generate_many`, with settings of its own. Fields as the arguments of `generate`."""

    prompt: str | Chat
    max_new_tokens: int = 128
    sampling: SamplingParams | None = None
    stop_strings: str | Sequence[str] | None = None
    logits_processor: LogitsProcessorList | None = None
    stopping_criteria: StoppingCriteriaList | None = None


@dataclass(frozen=True, slots=True)
class TextResult:
    """What `generate_many` yields.

    Attributes:
        index: which request it belongs to.
        text: the continuation.
        tokens: its ids.
        stats: counts and times of this request.
    """

    index: int
    text: str
    tokens: list[int]
    stats: RequestStats


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
    allow_targets: Collection[str] = (),
) -> GenerateOutput:
    """Continue prompts with speculative decoding.

    Args:
        model: any transformers causal LM with replaceable attention; it is left as it was.
        input_ids: `[B, L]` int64, left or right padded.
        attention_mask: `[B, L]`, 0 where padded; None if nothing is.
        drafter: a name in conf/drafter, a mapping with `_target_`, a dotted path, a Drafter, or a transformers model,
            which then is the draft model.
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
            with the model, so that later calls find them.
        allow_targets: see `loading.build`.

    Raises:
        ValueError: anything about the input, the model or the settings is wrong; the message says what to do.
    """
    check_architecture(model)
    prompts = prompts_of(input_ids, attention_mask, model.config.get_text_config().vocab_size)
    _check_count(max_new_tokens)
    _check_ids(eos_token_id, model.config.get_text_config().vocab_size)
    eos = eos_ids(model, eos_token_id)
    check_length(model, max(map(len, prompts)) + max_new_tokens, max_positions(model))
    criteria = _criteria(stopping_criteria, stop_strings, tokenizer)
    settings = _settings(sampling, len(prompts))
    requests = [
        Request(prompt, max_new_tokens, settings[row], eos, row_processors(logits_processor, row), criteria)
        for row, prompt in enumerate(prompts)
    ]
    engine = Engine(model, drafter, tree, acceptance, backend=backend, compile=compile, allow_targets=allow_targets)
    if streamer is not None:
        if len(prompts) > 1:
            raise ValueError(f"a streamer takes one row at a time; got {len(prompts)} rows")
        streamer.put(input_ids.cpu())
    texts, stats = serve(engine, requests, streamer)
    return GenerateOutput(pad_texts(input_ids, texts, pad_id(model, pad_token_id, eos)), stats)


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
        allow_targets: Collection[str] = (),
    ):
        self.rule = make_rule(acceptance, allow_targets)
        self.drafter = make_drafter(drafter, tree, allow_targets)
        check_fit(self.drafter, model)
        self.target = Target(model, backend=backend, hidden_layers=self.drafter.needs.hidden_layers, compile=compile)
        self._latest: object = None

    def warmup(self, slots: int = 1) -> None:
        """See `SpeculativeDecoder.warmup`."""
        self._latest = None
        self.target.warmup(slots, self.drafter.needs.max_nodes)
        if warmup := getattr(self.drafter, "warmup", None):
            warmup(slots)

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
        longest = max(len(r.prompt) + r.max_new_tokens for r in requests)
        capacity = min(slots or len(requests), len(requests))
        steps = decode(self.target, self.drafter, self.rule, requests, slots=capacity, max_length=longest, stats=stats)
        while self._latest is mine:
            try:
                yield next(steps)
            except StopIteration:
                return
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
    if isinstance(drafter, PreTrainedModel):
        drafter = {"_target_": "specdec.drafters.draft_model.DraftModel", "model": drafter}
    policy = None if tree is None else loading.build("tree", tree, allow_targets=allow_targets)
    settings = {} if policy is None else {"tree": policy}
    made: Drafter = loading.build("drafter", drafter, allow_targets=allow_targets, **settings)
    for name in ("needs", "open", "start", "propose", "observe"):
        if not hasattr(made, name):
            raise ValueError(f"drafter {made!r} has no {name}; see specdec.core.Drafter for what a drafter needs")
    return made


def make_rule(acceptance: object, allow_targets: Collection[str] = ()) -> AcceptanceRule:
    """See `generate`.

    Raises:
        ValueError: unknown, or not an acceptance rule.
    """
    rule: AcceptanceRule = loading.build("acceptance", acceptance, allow_targets=allow_targets)
    if not callable(rule) or not hasattr(rule, "lossless") or not hasattr(rule, "shared_noise"):
        raise ValueError(
            f"acceptance {rule!r} is no acceptance rule; see specdec.core.AcceptanceRule for what one needs"
        )
    return rule


def check_fit(drafter: Drafter, model: PreTrainedModel) -> None:
    """A drafter that says its `vocab_size` must have the target's, up to padding of the embedding, and one that says
    its `hidden_size` (of the hidden states it reads) exactly the target's.

    Raises:
        ValueError: it has another.
    """
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


class SpeculativeDecoder:
    """Text in, text out. Make one, use it many times.

    Args:
        model: a transformers causal LM.
        tokenizer: its tokenizer.
        drafter, tree, acceptance, backend, compile, allow_targets: as in `generate`.
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
        allow_targets: Collection[str] = (),
    ):
        self.model, self.tokenizer = model, tokenizer
        self.engine = Engine(
            model, drafter, tree, acceptance, backend=backend, compile=compile, allow_targets=allow_targets
        )

    @staticmethod
    def from_pretrained(
        name: str,
        *,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        trust_remote_code: bool = False,
        **settings: Any,
    ) -> SpeculativeDecoder:
        """Load a model and its tokenizer: a zoo name, a folder or a hub id. Other arguments as for the class."""
        tokenizer = loading.load_tokenizer(name, trust_remote_code)
        model = loading.load_model(name, device, dtype, trust_remote_code)
        return SpeculativeDecoder(model, tokenizer, **settings)

    def warmup(self, slots: int = 1) -> None:
        """With compile=True: compile every size of trees now, so that no request waits for it. A line each on stderr.

        Args:
            slots: requests at once, as prompts in a list or as `generate_many`'s slots; every number is compiled for
                itself.
        """
        self.engine.warmup(slots)

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
        settings = _settings(sampling, len(ids))
        criteria = _criteria(stopping_criteria, stop_strings, self.tokenizer)
        requests = [
            self._request(prompt, max_new_tokens, settings[row], row_processors(logits_processor, row), criteria)
            for row, prompt in enumerate(ids)
        ]
        tokens, stats = serve(self.engine, requests)
        texts = [self.tokenizer.decode(t, skip_special_tokens=True) for t in tokens]
        return TextOutput(texts[0] if single else texts, tokens, stats)

    def generate_many(
        self, requests: Iterable[str | Chat | TextRequest], *, slots: int = 32, stats: DecodingStats | None = None
    ) -> Iterator[TextResult]:
        """Continue any number of prompts, `slots` at a time: whenever one ends, the next takes its place.

        Args:
            requests: prompts, or TextRequests with settings of their own. All are read before the first is served.
            slots: how many are served at once.
            stats: where counts and times of the whole run go.

        Returns:
            An iterator of results, each as soon as it is finished; `index` says which request it belongs to.

        Raises:
            ValueError: as `generate`; before anything is served.
        """
        if type(slots) is not int or slots < 1:
            raise ValueError(f"slots is {slots!r}; expected an integer of at least 1")
        several = [r if isinstance(r, TextRequest) else TextRequest(r) for r in requests]
        chosen = []
        for row, each in enumerate(several):
            criteria = _criteria(each.stopping_criteria, each.stop_strings, self.tokenizer)
            processors = row_processors(each.logits_processor, row)
            (sampling,) = _settings(each.sampling, 1)
            ids = self._encode(each.prompt)
            chosen.append(self._request(ids, each.max_new_tokens, sampling, processors, criteria))
        return self._results(chosen, slots, stats if stats is not None else DecodingStats())

    def _results(self, requests: list[Request], slots: int, stats: DecodingStats) -> Iterator[TextResult]:
        for generation, _ in self.engine.run(requests, stats, slots):
            if generation.finished:
                tokens = generation.new_ids
                text = self.tokenizer.decode(tokens, skip_special_tokens=True)
                yield TextResult(generation.index, text, tokens, generation.stats)

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
        criteria = _criteria(None, stop_strings, self.tokenizer)
        request = self._request(self._encode(prompt), max_new_tokens, sampling or SamplingParams(), None, criteria)
        return self._stream(request, stats if stats is not None else DecodingStats())

    def _stream(self, request: Request, stats: DecodingStats) -> Iterator[str]:
        pieces = TextPieces(self.tokenizer)
        for _, tokens in self.engine.run([request], stats):
            if piece := pieces.push(tokens):
                yield piece
        if piece := pieces.flush():
            yield piece

    def _encode(self, prompt: str | Chat) -> list[int]:
        if isinstance(prompt, str):
            ids: list[int] = self.tokenizer(prompt)["input_ids"]
        elif not _is_chat(prompt):
            raise ValueError(
                f"a prompt is {prompt!r}; expected a string, or a chat: a list of messages with role and content"
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
        _check_count(max_new_tokens)
        _check_vocabulary(ids, self.engine.target.vocab_size, "a prompt")
        check_length(self.model, len(ids) + max_new_tokens, self.engine.target.max_positions)
        return Request(ids, max_new_tokens, sampling, eos_ids(self.model, None), processors, criteria)


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


class TextPieces:
    """Token ids to text, piece by piece: none ends inside a character, and the cost does not grow with the text.

    Tokens are decoded together with the few before them, because a tokenizer may write a token differently at the
    beginning of a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._before: list[int] = []  # already given out, kept as context
        self._waiting: list[int] = []

    def push(self, tokens: Sequence[int]) -> str:
        """The text that `tokens` complete."""
        self._waiting += tokens
        piece = self._decode()
        if piece.endswith("\ufffd"):  # perhaps the beginning of a character
            return ""
        return self._take(piece)

    def flush(self) -> str:
        """What is left at the end."""
        return self._take(self._decode())

    def _take(self, piece: str) -> str:
        if piece:
            self._before, self._waiting = self._waiting, []
        return piece

    def _decode(self) -> str:
        before = self._tokenizer.decode(self._before, skip_special_tokens=True)
        return self._tokenizer.decode(self._before + self._waiting, skip_special_tokens=True)[len(before) :]


def _is_chat(prompts: object) -> bool:
    return isinstance(prompts, Sequence) and bool(prompts) and isinstance(prompts[0], Mapping)


def _settings(sampling: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    """See `as_params`; what is neither is refused here."""
    several = isinstance(sampling, Sequence) and not isinstance(sampling, str)
    given = list(sampling) if several else [] if sampling is None else [sampling]  # type: ignore[arg-type]
    for each in given:
        if not isinstance(each, SamplingParams):
            raise ValueError(f"sampling is {each!r}; expected specdec.SamplingParams(...), or one per row")
    return as_params(sampling, count)


def _check_count(max_new_tokens: object) -> None:
    if type(max_new_tokens) is not int or max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens!r}; expected an integer of at least 0")


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
        _check_vocabulary(prompt, vocab_size, f"row {row}")
    return prompts


def _check_vocabulary(ids: Sequence[int], vocab_size: int, what: str) -> None:
    if min(ids) < 0 or max(ids) >= vocab_size:
        wrong = next(t for t in ids if not 0 <= t < vocab_size)
        raise ValueError(f"{what} has token id {wrong}; the model's ids go from 0 to {vocab_size - 1}")


def eos_ids(model: PreTrainedModel, given: int | Sequence[int] | None = None) -> frozenset[int]:
    """Ids that end a text: those given, or the model's own."""
    config = model.generation_config
    ids = given if given is not None else (config.eos_token_id if config is not None else None)
    if ids is None:
        ids = getattr(model.config.get_text_config(), "eos_token_id", None)
    return frozenset() if ids is None else frozenset([ids] if isinstance(ids, int) else ids)


def _check_ids(given: object, vocab_size: int) -> None:
    """`eos_token_id` as a user gave it; the model's own may be any."""
    ids = [given] if isinstance(given, int) else [] if given is None else given
    if not isinstance(ids, Collection) or isinstance(ids, str) or not all(isinstance(i, int) for i in ids):
        raise ValueError(f"eos_token_id is {given!r}; expected ids: an integer, or a list of them ([] for none)")
    for token in ids:
        if not 0 <= token < vocab_size:
            raise ValueError(
                f"eos_token_id {token} is not in the vocabulary; the model's ids go from 0 to {vocab_size - 1}"
            )


def pad_id(model: PreTrainedModel, given: int | None, eos: frozenset[int]) -> int:
    if given is not None:
        return given
    config = model.generation_config
    own = config.pad_token_id if config is not None else None
    return own if own is not None else min(eos, default=0)


def _criteria(
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


def pad_texts(input_ids: Tensor, texts: list[list[int]], pad: int) -> Tensor:
    """`[B, L + n]`."""
    longest = max(map(len, texts))
    rows = [text + [pad] * (longest - len(text)) for text in texts]
    new = torch.tensor(rows, dtype=input_ids.dtype, device=input_ids.device).view(len(texts), longest)
    return torch.cat([input_ids, new], 1)
