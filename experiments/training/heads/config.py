"""Every setting of a head's training. What they mean together is in docs/training.md."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specdec import registry
from specdec.experiments.training.heads.losses import LOSSES
from specdec.experiments.validation import check_counts

COUNTS = ("steps", "batch", "accumulate", "length", "anchors", "warmup_steps", "evaluate_every", "checkpoint_every")
DATA_COUNTS = ("sequences", "held_out", "prompt_tokens", "new_tokens", "slots", "shard")


@dataclass(frozen=True, slots=True)
class DataConfig:
    """The text a head learns from.

    Attributes:
        cache: folder of the sequences that were written; other trainings with the same settings share it.
        packages: where prompts come from: `stdlib` or names of installed distributions (see corpus).
        path: instead, a question.jsonl in Spec-Bench's form, or text files (a pattern).
        sequences: how many the target writes.
        held_out: how many it writes, greedily, to prompts held out for evaluation.
        prompt_tokens: of a prompt out of a text; a question is given whole.
        new_tokens: most tokens that the target writes to a prompt.
        temperatures: the sequences take turns with these.
        corpus_share: in [0, 1), share of training sequences that are pieces of the texts as they stand.
        drafter: that helps the target write, a name in conf/drafter. It changes no token.
        slots: sequences written at once.
        shard: sequences in a file; a kill loses at most so many.
        seed: of the choice of prompts and of sampling.
    """

    cache: str
    packages: Sequence[str] = ()
    path: str | None = None
    sequences: int = 2000
    held_out: int = 64
    prompt_tokens: int = 64
    new_tokens: int = 192
    temperatures: Sequence[float] = (0.0, 1.0)
    corpus_share: float = 0.0
    drafter: str = "none"
    slots: int = 32
    shard: int = 64
    seed: int = 0


@dataclass(frozen=True, slots=True)
class HeadTrainingConfig:
    """How a head is trained.

    Attributes:
        output: folder of the trained head.
        drafter: that the head is for, a name in conf/drafter; the card says so.
        data: see DataConfig.
        head: what makes a new head for a target: its `_target_` and settings.
        start: a head of these settings, by folder or zoo name, whose weights training begins from; None for new ones.
        only_data: write the text, train nothing.
        steps: updates of the weights.
        batch: sequences of a step, over all processes.
        accumulate: passes that a process splits its share of a step's sequences into, to save memory.
        length: sequences are cut to so many tokens.
        anchors: roots a sequence is trained at in a step, spread over what the target wrote.
        loss: ce, kl, tv, lk or lk_blend (see losses).
        depth_decay: weight of depth k + 1 over that of depth k.
        learning_rate: the highest, after `warmup_steps`; it falls to 0 in the last `decay_share` of the steps.
        weight_decay: of AdamW.
        evaluate_every, checkpoint_every: steps.
        seed: of the head's first weights, the order of sequences and the anchors.
        threads: of torch; 0 for its own choice.
        dtype: of forward and backward passes: bfloat16 (autocast; the weights stay float32) or float32.
        shard_target: spread the frozen target's layers over the processes (FSDP).
    """

    output: str
    drafter: str
    data: DataConfig
    head: Mapping[str, Any] | None = None
    start: str | None = None
    only_data: bool = False
    steps: int = 2000
    batch: int = 16
    accumulate: int = 1
    length: int = 256
    anchors: int = 32
    loss: str = "kl"
    depth_decay: float = 0.8
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    decay_share: float = 0.5
    weight_decay: float = 0.01
    evaluate_every: int = 250
    checkpoint_every: int = 100
    seed: int = 0
    threads: int = 0
    dtype: str = "bfloat16"
    shard_target: bool = False


def check_settings(config: HeadTrainingConfig) -> HeadTrainingConfig:
    """Look the numbers over; returns them.

    Raises:
        ValueError: one is out of its range; the message says which.
    """
    if config.head is None and not config.only_data:
        raise ValueError("training.head is not given; name the class of a head, as in conf/training/medusa.yaml")
    data = config.data
    counts = {f"training.{name}": getattr(config, name) for name in COUNTS}
    counts |= {f"data.{name}": getattr(data, name) for name in DATA_COUNTS}
    check_counts(counts)
    for name, most in (("learning_rate", float("inf")), ("depth_decay", float("inf")), ("decay_share", 1.0)):
        value = getattr(config, name)
        if not isinstance(value, int | float) or not 0 < value <= most:
            raise ValueError(f"training.{name} is {value!r}; expected a number above 0{', at most 1' * (most == 1)}")
    if config.loss not in LOSSES:
        raise registry.unknown("training.loss", config.loss, LOSSES)
    if config.dtype not in ("bfloat16", "float32"):
        raise registry.unknown("training.dtype", config.dtype, ["bfloat16", "float32"])
    if not 0 <= data.corpus_share < 1:
        raise ValueError(f"data.corpus_share is {data.corpus_share!r}; expected a number from 0 to below 1")
    if not data.temperatures or min(data.temperatures) < 0:
        raise ValueError(f"data.temperatures is {data.temperatures!r}; expected numbers of at least 0, as [0.0, 1.0]")
    if data.path is None and not data.packages:
        raise ValueError("data.packages is empty; name `stdlib` or installed distributions, or give data.path")
    if data.path is not None and not glob.glob(data.path, recursive=True):
        raise ValueError(f"data.path: {data.path!r} matches no file")
    return config
