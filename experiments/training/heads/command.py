"""A head's training from its configuration to a folder with weights and card."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from specdec import loading, registry
from specdec.experiments import provenance
from specdec.experiments.display import Bar
from specdec.experiments.trackers.base import Guarded
from specdec.experiments.trackers.noop import Noop
from specdec.experiments.training.folder import claimed, steps_done
from specdec.experiments.training.heads.card import write_card
from specdec.experiments.training.heads.config import HeadTrainingConfig
from specdec.experiments.training.heads.decoded import decode_held_out
from specdec.experiments.training.heads.distil import Data, make_data
from specdec.experiments.training.heads.make import make_head
from specdec.experiments.training.heads.trainer import CHECKPOINT, HeadResult, train
from specdec.experiments.training.pretrain import write_history
from specdec.inspection import hidden_modules
from specdec.target import Target

FREE = {"output", "drafter", "only_data", "steps", "accumulate", "evaluate_every", "checkpoint_every"}
FREE |= {"threads", "shard_target"}
FREE_DATA = {"cache", "drafter", "slots", "shard"}  # how the text is written, not what it says


def train_head(
    config: HeadTrainingConfig, raw: Mapping[str, Any], overrides: Sequence[str], console: Console
) -> HeadResult | None:
    """Write the text, or find it, and train on it.

    Args:
        raw: the resolved configuration.
        overrides: what was asked for on the command line.

    Returns:
        What came of it; None where only the text was wanted.

    Raises:
        ValueError: the head does not fit, sequences are too short, the output folder holds something else, or another
            process trains there.
    """
    with ExitStack() as folder:
        return _train_head(config, raw, overrides, console, folder)


def _train_head(
    config: HeadTrainingConfig, raw: Mapping[str, Any], overrides: Sequence[str], console: Console, folder: ExitStack
) -> HeadResult | None:
    from accelerate import Accelerator

    transformers_logging.disable_progress_bar()
    if config.threads:
        torch.set_num_threads(config.threads)
    allowed = tuple(raw.get("allow_targets") or ())
    spec = dict(raw["target"])
    accelerator = Accelerator(cpu=not torch.cuda.is_available() or spec.get("device") == "cpu")
    if not accelerator.is_main_process:
        console = Console(quiet=True)
    if accelerator.num_processes > 1 and spec.get("device") == "auto":
        spec["device"] = str(accelerator.device)
    model = registry.instantiate(spec, allowed, "target")
    target = None if config.only_data else Target(model)
    head, teacher = make_head(config, target, allowed) if target else (None, None)
    if head is not None:  # what is wrong with its drafter's yaml shows now
        registry.build("drafter", {**raw["drafter"], "head": head}, allow_targets=allowed)
    output = Path(config.output)
    if head is not None and accelerator.is_main_process:
        folder.enter_context(claimed(output, _settings(raw), FREE))
    data = _make_data(config, model, raw, console, accelerator)
    if head is None or teacher is None:
        return None
    if not config.start and (choose := getattr(head, "choose_tokens", None)):
        counts = torch.from_numpy(data.train.written()).bincount(minlength=head.vocab_size)
        choose(counts, model.get_output_embeddings().weight)
    if config.shard_target and accelerator.num_processes > 1:
        _shard(model)
    tracker = Guarded(registry.instantiate(raw["tracker"]) if accelerator.is_main_process else Noop())
    tracker.start(output, str(raw["name"]), raw)
    result = _train(config, head, teacher, data, accelerator, console, tracker)
    decoded = None
    if accelerator.is_main_process:
        head.to(model.dtype).save(output)
        if not config.shard_target:
            decoded = decode_held_out(model, {**raw["drafter"], "head": str(output)}, data.held_out, allowed)
        write_history(output / "history.jsonl", result.history, "mean_accepted_length")
        about = [asdict(source) for source in data.sources]
        text = {"path": config.data.path, "sources": about, "sequences": result.sequences}
        provenance.write(output / "provenance.json", provenance.collect(provenance.command_line(), dict(raw), text))
        write_card(output, raw, config, result, decoded, data, shlex.join(["specdec", "train", *overrides]))
    found = result.held_out.mean_accepted_length
    tracker.finish({"mean_accepted_length": found, **({"mean_accepted_length_decoded": decoded} if decoded else {})})
    console.print(f"{output}: {found:.3f} tokens a step on held-out text; see README.md", highlight=False)
    accelerator.wait_for_everyone()
    return result


def _settings(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the weights, for training.yaml."""
    data = {key: value for key, value in raw["training"]["data"].items() if key not in FREE_DATA}
    return {**raw["training"], "data": data, "target": raw["target"]["name"]}


def _make_data(
    config: HeadTrainingConfig, model: PreTrainedModel, raw: Mapping[str, Any], console: Console, accelerator: Any
) -> Data:
    target = raw["target"]
    tokenizer = loading.load_tokenizer(target["name"], bool(target.get("trust_remote_code")))
    console.print("Reading the texts", highlight=False)
    with Bar(console, 1, "The target writes") as bar:
        data = make_data(
            config.data,
            model,
            tokenizer,
            lambda done, count: bar.advance(done=done, total=count),
            accelerator.process_index,
            accelerator.num_processes,
            accelerator.wait_for_everyone,
        )
    written = len(data.train.written())
    console.print(f"{len(data.train):,} sequences, {written:,} tokens of the target's own: {config.data.cache}")
    return data


def _train(
    config: HeadTrainingConfig,
    head: Any,
    teacher: Any,
    data: Data,
    accelerator: Any,
    console: Console,
    tracker: Guarded,
) -> HeadResult:
    done = steps_done(Path(config.output) / CHECKPOINT)
    if done:
        console.print(f"Going on from step {done} of {config.steps}", highlight=False)
    with Bar(console, config.steps, "Training") as bar:
        bar.advance(done=done)

        def progress(step: int, loss: float, accepted: float | None) -> None:
            bar.advance(f"loss {loss:.3f}" + (f", {accepted:.3f} tokens a step" if accepted else ""), done=step)
            tracker.log({"loss": loss, **({"mean_accepted_length": accepted} if accepted else {})}, step)

        return train(config, head, teacher, data, progress, accelerator)


def _shard(model: PreTrainedModel) -> None:
    """Every process keeps its share of each layer's weights, and gathers a layer when it runs."""
    from torch.distributed.fsdp import fully_shard

    for layer in range(model.config.get_text_config().num_hidden_layers):
        (module,) = hidden_modules(model, [layer]).values()
        fully_shard(module)
