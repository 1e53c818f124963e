"""The training loop: one forward pass of the frozen target a batch, the head at many roots of it, AdamW.

Several processes (`accelerate launch`) share the sequences of every step. A killed training goes on from its newest
checkpoint to the same weights: sequences, anchors and the learning rate follow from the step's number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from specdec.core import TrainableHead
from specdec.experiments.training import checkpoint
from specdec.experiments.training.checkpoint import History
from specdec.experiments.training.heads.batches import Batch, Places
from specdec.experiments.training.heads.config import HeadTrainingConfig
from specdec.experiments.training.heads.distil import Data
from specdec.experiments.training.heads.losses import depth_weights, token_losses
from specdec.experiments.training.heads.simulate import Simulation, ask, following, simulate
from specdec.experiments.training.heads.teacher import Hidden, Teacher
from specdec.experiments.training.pretrain import rate
from specdec.loading import DTYPES

CHECKPOINT = "checkpoint"  # in a folder of its own: all safetensors beside a head's config.json are its weights
Progress = Callable[[int, float, float | None], None]  # steps done, loss, held-out mean accepted length if it is known


@dataclass(frozen=True, slots=True)
class HeadResult:
    """What a model card needs.

    Attributes:
        history: step, training loss, held-out mean accepted length.
        held_out: the last walk.
        sequences: trained on.
    """

    history: History
    held_out: Simulation
    sequences: int


class Objective(nn.Module):
    """A head with its loss: what is differentiated, in one call, so that processes can share it."""

    def __init__(self, head: TrainableHead, config: HeadTrainingConfig):
        super().__init__()
        self.head = head
        self.loss, self.dtype = config.loss, DTYPES[config.dtype]
        self.weights = depth_weights(head.depth, config.depth_decay)

    def forward(self, batch: Batch, hidden: Hidden, target_logits: Tensor) -> Tensor:
        """Mean over anchors, weighted over depths. `target_logits` `[B, A, K, V]`."""
        logits = ask(self.head, batch.tokens, hidden, batch.anchors, self.dtype)
        labels = following(batch.tokens, batch.anchors, self.head.depth)
        if not batch.written.all():
            labels = torch.where(batch.written[:, None, None], labels, target_logits.argmax(-1))
        losses = token_losses(self.loss, logits, target_logits, labels)  # [B, A, K]
        return losses.mean((0, 1)) @ self.weights.to(losses.device)


def train(
    config: HeadTrainingConfig, head: Any, teacher: Teacher, data: Data, progress: Progress, accelerator: Any
) -> HeadResult:
    """Train `head` in place, from the newest checkpoint in `config.output` if there is one.

    Args:
        head: a TrainableHead in float32 on the target's device, bound to it.
        accelerator: accelerate's; says which process this is.

    Raises:
        ValueError: sequences are too short for the head, too few for a step, or not to be shared evenly.
    """
    places, held_out = (Places.of(s, head.depth, config.length) for s in (data.train, data.held_out))
    _check_shares(config, len(places), accelerator.num_processes)
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=config.weight_decay
    )
    folder = Path(config.output) / CHECKPOINT
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
    first, history = checkpoint.load(folder, head, [optimizer])
    objective = accelerator.prepare_model(Objective(head, config), device_placement=False)
    found: Simulation | None = None
    for step in range(first, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * rate(step, config)
        batches = _share(config, places, step, accelerator, teacher.model.device)
        loss = float(accelerator.reduce(_update(config, head, objective, teacher, batches, accelerator), "mean"))
        optimizer.step()
        optimizer.zero_grad()
        done, reached = step + 1, step + 1 == config.steps
        if reached or done % config.evaluate_every == 0:
            found = simulate(head, teacher, held_out, DTYPES[config.dtype])
            history.append((done, loss, found.mean_accepted_length))
        progress(done, loss, history[-1][2] if history and history[-1][0] == done else None)
        if reached or done % config.checkpoint_every == 0:
            if accelerator.is_main_process:
                checkpoint.save(folder, head, [optimizer], done, history)
            accelerator.wait_for_everyone()
    found = found or simulate(head, teacher, held_out, DTYPES[config.dtype])
    return HeadResult(history, found, len(places))


def _check_shares(config: HeadTrainingConfig, sequences: int, processes: int) -> None:
    parts = processes * config.accumulate
    if config.batch % parts:
        raise ValueError(
            f"training.batch is {config.batch}, which {processes} processes of training.accumulate={config.accumulate} "
            f"passes cannot share evenly; give a multiple of {parts}"
        )
    if sequences < config.batch:
        raise ValueError(
            f"there are {sequences} sequences long enough to train on, fewer than training.batch={config.batch}; "
            "raise data.sequences, or lower training.batch"
        )


def _share(
    config: HeadTrainingConfig, places: Places, step: int, accelerator: Any, device: torch.device
) -> Iterator[Batch]:
    """This process's part of the step, in `accumulate` parts, on `device`."""
    rows, anchors = places.draw(step, config.seed, config.batch, config.anchors)
    mine = np.arange(accelerator.process_index, config.batch, accelerator.num_processes)
    for part in np.split(mine, config.accumulate):
        batch = places.batch(rows[part], anchors[part])
        yield Batch(*(x.to(device) for x in (batch.tokens, batch.anchors, batch.written)))


def _update(
    config: HeadTrainingConfig,
    head: TrainableHead,
    objective: nn.Module,
    teacher: Teacher,
    batches: Iterator[Batch],
    accelerator: Any,
) -> Tensor:
    """Gradients of the step; returns the mean loss of this process's part."""
    total = torch.zeros((), device=teacher.model.device)
    for number, batch in enumerate(batches, 1):
        hidden, target_logits = teacher(batch.tokens, batch.anchors, head.depth)
        last = number == config.accumulate  # only then processes exchange gradients
        with nullcontext() if last else accelerator.no_sync(objective):
            loss = objective(batch, hidden, target_logits) / config.accumulate
            accelerator.backward(loss)
        total += loss.detach()
    nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
    return total
