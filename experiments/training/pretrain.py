"""Train a small Llama from nothing on the corpus: the shipped target, and the shipped draft distilled from it.

Hidden matrices are trained with Muon, the rest with AdamW; the rate is constant after a warm-up and falls linearly in
the last part of training, so a run may be lengthened (`steps=`) as long as the fall has not begun. Short sequences
first, long ones at the end (`stages`): on a CPU half of a long sequence's time would go to attention.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from specdec.experiments.training import checkpoint, synthetic
from specdec.experiments.training.corpus import Document, Source, read_corpus
from specdec.experiments.training.tokenizer import train_tokenizer


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of training: until `until` (a share of all steps) sequences have `length` tokens."""

    until: float
    length: int


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    """Everything that decides the weights. `teacher` names a model folder to distil from (KL), or None."""

    output: str
    packages: Sequence[str]
    model: dict[str, Any]  # keyword arguments of LlamaConfig
    vocab_size: int = 4096
    synthetic_documents: int = 12_000
    steps: int = 3000
    tokens_per_step: int = 4096
    stages: Sequence[Stage] = field(default_factory=lambda: (Stage(0.85, 256), Stage(1.0, 1024)))
    learning_rate: float = 4e-3
    weight_decay: float = 0.05
    warmup_steps: int = 60
    decay_share: float = 0.4
    teacher: str | None = None
    tokenizer: str | None = None  # a folder to take the tokenizer from; None trains one
    start: str | None = None  # a folder whose weights training begins from; None begins from noise
    evaluate_every: int = 250
    checkpoint_every: int = 100
    seed: int = 0
    threads: int = 0
    title: str | None = None  # of the model card; None: the experiment's name


@dataclass(frozen=True, slots=True)
class PretrainResult:
    """What a model card needs."""

    config: PretrainConfig
    sources: list[Source]
    parameters: int
    tokens: int
    bits_per_byte: float
    history: list[tuple[int, float, float]]  # step, training loss (nats a token), held-out bits per byte


def pretrain(config: PretrainConfig, progress: Any = None) -> PretrainResult:
    """Train, or go on from the newest checkpoint in `config.output`, and leave a loadable model folder there."""
    torch.manual_seed(config.seed)
    if config.threads:
        torch.set_num_threads(config.threads)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    documents, sources = read_corpus(config.packages)
    train, held_out = split(documents)
    train += list(synthetic.documents(train, config.synthetic_documents, config.seed))
    tokenizer = load_or_train_tokenizer(config, train)
    tokens = encode(tokenizer, train, config.seed)  # [T] uint16
    model = make_model(config)
    model.set_attn_implementation("eager")  # quicker than SDPA's backward for short sequences on a CPU
    teacher = AutoModelForCausalLM.from_pretrained(config.teacher, dtype=torch.bfloat16) if config.teacher else None
    optimizers = make_optimizers(model, config)
    first, history = checkpoint.load(output, model, optimizers)

    for step in range(first, config.steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * rate(step, config)
        batch = draw_batch(tokens, step, config)  # [B, T + 1]
        loss = train_step(model, teacher, batch, optimizers)
        if progress is not None:
            progress(step + 1, config.steps, loss)
        done = step + 1 == config.steps
        if done or (step + 1) % config.evaluate_every == 0:
            history.append((step + 1, loss, bits_per_byte(model, tokenizer, held_out)))
        if done or (step + 1) % config.checkpoint_every == 0:
            checkpoint.save(output, model, optimizers, step + 1, history)
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)
    parameters = sum(p.numel() for p in model.parameters())
    return PretrainResult(config, sources, parameters, config.steps * config.tokens_per_step, history[-1][2], history)


def split(documents: Sequence[Document]) -> tuple[list[str], list[str]]:
    """Training texts and held-out texts."""
    return [d.text for d in documents if not d.held_out], [d.text for d in documents if d.held_out]


def load_or_train_tokenizer(config: PretrainConfig, texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """The tokenizer of `config.tokenizer`, or of an earlier start of this run, or a new one, saved at once."""
    for folder in (config.tokenizer, config.output):
        if folder and (Path(folder) / "tokenizer.json").exists():
            return PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer = train_tokenizer(texts, config.vocab_size)
    tokenizer.save_pretrained(config.output)
    return tokenizer


def make_model(config: PretrainConfig) -> LlamaForCausalLM:
    """A new model in float32, with the weights of `config.start` if that is given.

    Raises:
        ValueError: those weights have another shape.
    """
    shape = LlamaConfig(vocab_size=config.vocab_size, bos_token_id=None, eos_token_id=0, **config.model)
    model = LlamaForCausalLM(shape)
    if config.start:
        weights = AutoModelForCausalLM.from_pretrained(config.start, dtype=torch.float32).state_dict()
        expected = {name: tuple(w.shape) for name, w in model.state_dict().items()}
        if expected != {name: tuple(w.shape) for name, w in weights.items()}:
            raise ValueError(f"training.start: {config.start} has weights of another shape than training.model")
        model.load_state_dict(weights)
    return model


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], seed: int) -> np.ndarray:
    """All texts in a shuffled order, each ended by the end-of-text token: [T] uint16."""
    order = np.random.default_rng(seed).permutation(len(texts))
    pieces: list[np.ndarray] = []
    for start in range(0, len(texts), 512):
        batch = tokenizer([texts[i] for i in order[start : start + 512]])["input_ids"]
        pieces += [np.array([*ids, tokenizer.eos_token_id], dtype=np.uint16) for ids in batch]
    return np.concatenate(pieces)


def draw_batch(tokens: np.ndarray, step: int, config: PretrainConfig) -> Tensor:
    """The step's sequences: a permutation of all windows per pass, a pure function of (seed, step): [B, T + 1]."""
    length = next(s.length for s in config.stages if step < s.until * config.steps)
    rows = config.tokens_per_step // length
    windows = (len(tokens) - 1) // length
    pass_number, offset = divmod(step * rows, windows - windows % rows)
    order = np.random.default_rng((config.seed, pass_number, length)).permutation(windows)
    starts = order[offset : offset + rows] * length
    return torch.from_numpy(np.stack([tokens[s : s + length + 1].astype(np.int64) for s in starts]))


def train_step(
    model: LlamaForCausalLM,
    teacher: Any,
    batch: Tensor,  # [B, T + 1]
    optimizers: Sequence[torch.optim.Optimizer],
) -> float:
    """One update; returns the loss in nats a token (cross-entropy, or KL from the teacher)."""
    inputs, labels = batch[:, :-1], batch[:, 1:]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(inputs, use_cache=False).logits.flatten(0, 1).float()  # [B * T, V]
    if teacher is None:
        loss = F.cross_entropy(logits, labels.flatten())
    else:
        with torch.no_grad():
            target = teacher(inputs, use_cache=False).logits.flatten(0, 1).float()
        loss = F.kl_div(logits.log_softmax(-1), target.log_softmax(-1), log_target=True, reduction="batchmean")
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


class Schedule(Protocol):
    """What decides the learning rate's course."""

    @property
    def steps(self) -> int: ...

    @property
    def warmup_steps(self) -> int: ...

    @property
    def decay_share(self) -> float: ...


def rate(step: int, config: Schedule) -> float:
    """Warm-up, constant, linear fall: in (0, 1]."""
    fall = config.steps * config.decay_share
    return min((step + 1) / config.warmup_steps, 1.0, (config.steps - step) / fall)


def make_optimizers(model: LlamaForCausalLM, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for hidden matrices, AdamW for the embedding and the norms."""
    named = list(model.named_parameters())
    matrices = [p for n, p in named if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    ids = {id(p) for p in matrices}
    others = [p for _, p in named if id(p) not in ids]
    return [
        torch.optim.Muon(
            matrices, lr=config.learning_rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


@torch.no_grad()
def bits_per_byte(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> float:
    """Held-out cross-entropy in bits per byte of text, over windows of 512 tokens, at most 64 of them."""
    nats, size = 0.0, 0
    for ids in _windows(tokenizer, texts, length=512, count=64):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(ids[None, :-1], use_cache=False).logits[0].float()  # [T, V]
        nats += float(F.cross_entropy(logits, ids[1:], reduction="sum"))
        size += len(tokenizer.decode(ids[1:]).encode())
    return nats / math.log(2) / max(size, 1)


def _windows(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], length: int, count: int) -> Iterator[Tensor]:
    """The first window of each text, so that many files are seen rather than a long one."""
    for text in texts[:count]:
        ids = torch.tensor(tokenizer(text[: 8 * length])["input_ids"][:length])
        if len(ids) > 1:
            yield ids


def write_history(path: Path, history: Sequence[tuple[int, float, float]], metric: str = "bits_per_byte") -> None:
    """The curve as JSON lines: step, training loss, and the held-out metric under its name."""
    rows = ({"step": s, "loss": loss, metric: value} for s, loss, value in history)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
