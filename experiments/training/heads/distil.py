"""Text that the target wrote itself: what a head has to predict is what this target says, not what people wrote.

Sequences are written with our own loop, many at once, and kept in files of `shard` sequences whose names hold a hash
of everything that decides them: the target's weights, the prompts, the sampling. So a training that is started again,
or another head's, reads what is there and writes only what is missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specdec.engine import Engine
from specdec.experiments.training.corpus import Source
from specdec.experiments.training.heads.config import DataConfig
from specdec.experiments.training.heads.prompts import Make, Prompts, make_prompts
from specdec.experiments.training.heads.sequences import Sequences
from specdec.inputs import eos_ids
from specdec.inspection import max_positions
from specdec.metrics import DecodingStats
from specdec.request import Request
from specdec.sampling import SamplingParams

Progress = Callable[[int, int], None]  # sequences there are, of how many
SEEDS = 1_000_003  # apart, so that two trainings' sequences share none


@dataclass(frozen=True, slots=True)
class Data:
    """What a head is trained and evaluated on, and where it came from."""

    train: Sequences
    held_out: Sequences
    sources: list[Source]


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of sequences, there or to be written."""

    file: Path
    requests: list[Request]


def make_data(
    config: DataConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    progress: Progress,
    rank: int = 0,
    world: int = 1,
    wait: Callable[[], None] = lambda: None,
) -> Data:
    """Read the sequences, after the missing ones have been written.

    Args:
        rank, world: this process, of how many: each writes its share.
        wait: until all processes are here.

    Raises:
        ValueError: see `make_prompts`.
    """
    prompts = make_prompts(config, tokenizer, max_positions(model))
    splits = _shards(config, model, prompts)
    shards = [shard for split in splits for shard in split]
    count = sum(len(s.requests) for s in shards)
    missing = [s for s in shards if not s.file.exists()]
    there = count - sum(len(s.requests) for s in missing)
    progress(there, count)
    for done in _write(missing[rank::world], model, config) if missing[rank::world] else ():
        progress(min(there + done * world, count), count)
    wait()
    train, held_out = (Sequences.joined([Sequences.load(s.file) for s in split]) for split in splits)
    return Data(Sequences.joined([train, _windows(config, prompts, len(train))]), held_out, prompts.sources)


def weights_hash(model: PreTrainedModel) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the weights."""
    found = hashlib.sha256()
    for name, weight in model.state_dict().items():
        found.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        found.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _shards(config: DataConfig, model: PreTrainedModel, prompts: Prompts) -> tuple[list[Shard], list[Shard]]:
    """Those of training, and of evaluation: that is greedy."""
    weights, eos = weights_hash(model), eos_ids(model, None)

    def shards(split: str, make: Make, count: int, temperatures: Sequence[float]) -> Iterator[Shard]:
        for start in range(0, count, config.shard):
            requests = []
            for i in range(start, min(start + config.shard, count)):
                temperature, seed = float(temperatures[i % len(temperatures)]), config.seed * SEEDS + i
                sampling = SamplingParams(temperature=temperature, seed=seed)
                requests.append(Request(make(i), config.new_tokens, sampling, eos))
            yield Shard(Path(config.cache) / f"{split}-{_hash(weights, requests)}.safetensors", requests)

    train = shards("train", prompts.train, config.sequences, config.temperatures)
    return list(train), list(shards("held_out", prompts.held_out, config.held_out, [0.0]))


def _hash(weights: str, requests: list[Request]) -> str:
    """16 hexadecimal digits of everything that decides what is written."""
    asked = [
        (list(r.prompt), r.max_new_tokens, r.sampling.temperature, r.sampling.seed, sorted(r.eos)) for r in requests
    ]
    return hashlib.sha256(json.dumps([weights, asked]).encode()).hexdigest()[:16]


def _write(shards: Sequence[Shard], model: PreTrainedModel, config: DataConfig) -> Iterator[int]:
    """Write these shards, each as soon as its last sequence has ended; yields how many sequences are done."""
    places = [(number, i) for number, shard in enumerate(shards) for i in range(len(shard.requests))]
    rows: list[dict[int, list[int]]] = [{} for _ in shards]
    Path(config.cache).mkdir(parents=True, exist_ok=True)
    engine = Engine(model, config.drafter, None, "coupled")
    requests = [request for shard in shards for request in shard.requests]
    done = 0
    for generation, _ in engine.run(requests, DecodingStats(), config.slots):
        if not generation.finished:
            continue
        number, i = places[generation.index]
        rows[number][i], shard = generation.ids, shards[number]
        if len(rows[number]) == len(shard.requests):
            texts = [rows[number].pop(i) for i in range(len(shard.requests))]
            Sequences.of(texts, [len(request.prompt) for request in shard.requests]).save(shard.file)
        done += 1
        yield done


def _windows(config: DataConfig, prompts: Prompts, written: int) -> Sequences:
    """Pieces of texts as they stand, so many that they make `corpus_share` of all."""
    count = round(written * config.corpus_share / (1 - config.corpus_share))
    if not count or prompts.window is None:
        return Sequences.joined([])
    rows = [prompts.window(i) for i in range(count)]
    return Sequences.of(rows, [len(row) for row in rows])
