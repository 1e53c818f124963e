"""A head's training from a configuration to a folder with its card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from transformers.utils import logging as transformers_logging

from specdec import loading
from specdec.experiments.display import Bar
from specdec.experiments.training.heads.config import HeadTrainingConfig
from specdec.experiments.training.heads.distil import Data, make_data


def train_head(config: HeadTrainingConfig, raw: Mapping[str, Any], overrides: Sequence[str], console: Console) -> Data:
    """Write the text, or find it, and train on it.

    Args:
        raw: the resolved configuration.
        overrides: what was asked for on the command line.
    """
    transformers_logging.disable_progress_bar()
    if config.threads:
        torch.set_num_threads(config.threads)
    target = raw["target"]
    model = loading.instantiate(target, tuple(raw.get("allow_targets") or ()), "target")
    tokenizer = loading.load_tokenizer(target["name"], bool(target.get("trust_remote_code")))
    return _make_data(config, model, tokenizer, console)


def _make_data(config: HeadTrainingConfig, model: Any, tokenizer: Any, console: Console) -> Data:
    console.print("Reading the texts", highlight=False)
    with Bar(console, 1, "The target writes") as bar:
        data = make_data(config.data, model, tokenizer, lambda done, count: bar.advance(done=done, total=count))
    written = int((data.train.lengths - data.train.prompt_lengths).sum())
    console.print(f"{config.data.cache}: {len(data.train):,} sequences, {written:,} tokens of the target's own")
    return data
