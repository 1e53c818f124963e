"""`specdec train`: validate, train or go on from the checkpoint, and leave a model with its card."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import LlamaConfig
from transformers.utils import logging as transformers_logging

from specdec import loading, registry
from specdec.experiments import provenance
from specdec.experiments.display import Bar
from specdec.experiments.trackers.base import Guarded
from specdec.experiments.training import checkpoint, datastore
from specdec.experiments.training.datastore import DatastoreConfig, DatastoreResult
from specdec.experiments.training.folder import claimed, steps_done
from specdec.experiments.training.heads.command import train_head
from specdec.experiments.training.heads.config import HeadTrainingConfig, check_settings
from specdec.experiments.training.model_card import write_datastore_card, write_model_card
from specdec.experiments.training.pretrain import PretrainConfig, PretrainResult, Stage, pretrain, write_history
from specdec.experiments.validation import check_counts, check_keys, refuse_missing

FREE = {"output", "steps", "evaluate_every", "checkpoint_every", "threads", "title"}  # may differ when a run goes on


def train(raw: Mapping[str, Any], overrides: Sequence[str], console: Console) -> object:
    """Train what `raw["training"]` describes.

    Args:
        raw: the resolved configuration, see conf/train.yaml.
        overrides: what was asked for on the command line.

    Raises:
        ValueError: the configuration is wrong, or the output folder holds the training of something else,
            or another process trains there.
    """
    config = parse(raw)
    if isinstance(config, HeadTrainingConfig):
        return train_head(config, raw, overrides, console)
    transformers_logging.disable_progress_bar()
    with claimed(Path(config.output), raw["training"], FREE):
        if isinstance(config, DatastoreConfig):
            return _build_datastore(config, raw, overrides, console)
        return _pretrain(config, raw, overrides, console)


def _pretrain(
    config: PretrainConfig, raw: Mapping[str, Any], overrides: Sequence[str], console: Console
) -> PretrainResult:
    output = Path(config.output)
    done = steps_done(output)
    if done:
        console.print(f"Going on from step {done} of {config.steps}: {output / checkpoint.FILE}", highlight=False)
    console.print("Reading the corpus", highlight=False)
    command = shlex.join(["specdec", "train", *overrides])
    tracker = Guarded(registry.instantiate(raw["tracker"]))
    tracker.start(output, str(raw["name"]), raw)
    with Bar(console, config.steps, "Training") as bar:
        bar.advance(done=done)

        def progress(step: int, steps: int, loss: float) -> None:
            bar.advance(f"loss {loss:.3f}", done=step)
            tracker.log({"loss": loss}, step)

        result = pretrain(config, progress)
    tracker.finish({"bits_per_byte": result.bits_per_byte})
    write_history(output / "history.jsonl", result.history)
    sources = [asdict(source) for source in result.sources]
    about = provenance.collect(provenance.command_line(), dict(raw), {"sources": sources})
    provenance.write(output / "provenance.json", about)
    write_model_card(output, config.title or str(raw["name"]), raw["training"], result, command, torch.__version__)
    console.print(
        f"{output}: {result.parameters:,} parameters, {result.bits_per_byte:.3f} bits per held-out byte; see README.md",
        highlight=False,
    )
    return result


def _build_datastore(
    config: DatastoreConfig, raw: Mapping[str, Any], overrides: Sequence[str], console: Console
) -> DatastoreResult:
    console.print("Reading the corpus", highlight=False)
    with Bar(console, 1, "Tokenising") as bar:
        result = datastore.build(config, lambda done, total: bar.advance(done=done, total=total))
    sources = [asdict(source) for source in result.sources]
    about = provenance.collect(provenance.command_line(), dict(raw), {"sources": sources})
    provenance.write(result.file.with_name("provenance.json"), about)
    write_datastore_card(result.file.parent, str(raw["name"]), result, shlex.join(["specdec", "train", *overrides]))
    console.print(
        f"{result.file}: {result.tokens:,} tokens of {result.documents:,} texts, {result.file.stat().st_size:,} bytes",
        highlight=False,
    )
    return result


def parse(raw: Mapping[str, Any]) -> PretrainConfig | DatastoreConfig | HeadTrainingConfig:
    """The training's configuration, looked over before anything is read.

    Raises:
        ValueError: a key or value is wrong; the message says which.
    """
    if "methods" in raw:
        raise ValueError("this configuration measures methods: start it with `specdec run`")
    check_keys(raw, {"name", "training", "data", "target", "drafter", "tracker", "allow_targets"}, "setting")
    settings = raw["training"]
    if not isinstance(settings, Mapping):
        raise ValueError(
            "nothing to train was chosen; give a drafter that is trained, as in drafter=medusa, or "
            "experiment=train_tiny or another conf/experiment/train_*.yaml"
        )
    refuse_missing(settings, "training")
    head = settings.get("head")  # it is made later, for the target
    config = registry.instantiate(
        {k: v for k, v in settings.items() if k != "head"}, tuple(raw.get("allow_targets") or ()), "training"
    )
    if isinstance(config, HeadTrainingConfig):
        return check_settings(replace(config, head=head))
    if isinstance(config, DatastoreConfig):
        datastore.check(config)
        return config
    if not isinstance(config, PretrainConfig):
        raise ValueError(
            f"training: {settings['_target_']} is no training's configuration; "
            "expected PretrainConfig, DatastoreConfig or HeadTrainingConfig"
        )
    check_keys(config.model, set(LlamaConfig().to_dict()), "setting of training.model")
    counts = ("steps", "tokens_per_step", "evaluate_every", "checkpoint_every", "vocab_size", "warmup_steps")
    check_counts({f"training.{name}": getattr(config, name) for name in counts})
    if not config.packages:
        raise ValueError("training.packages is empty; expected `stdlib` or names of installed distributions")
    for stage in config.stages:
        check_keys(stage, {f.name for f in fields(Stage)}, "setting of training.stages")
    stages = tuple(Stage(**stage) for stage in config.stages)  # type: ignore[arg-type]
    if not stages or stages[-1].until < 1 or any(s.length > config.tokens_per_step for s in stages):
        raise ValueError("training.stages must reach until: 1.0, each with a length of at most tokens_per_step")
    named = {name: loading.model_path(v) for name in ("teacher", "tokenizer", "start") if (v := getattr(config, name))}
    return replace(config, stages=stages, **named)  # type: ignore[arg-type]
