"""A new head for a target, looked over before any text is written or read."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

import torch

from specdec import registry
from specdec.engine import check_fit
from specdec.experiments.training.heads.config import HeadTrainingConfig
from specdec.experiments.training.heads.simulate import ask
from specdec.experiments.training.heads.teacher import Teacher
from specdec.target import Target


def make_head(config: HeadTrainingConfig, target: Target, allow_targets: Collection[str]) -> tuple[Any, Teacher]:
    """The head that `training.head` describes, in float32, bound to the target; and the target as its teacher.

    Raises:
        ValueError: the head is unknown or does not fit the target, sequences will be too short for it, or
            `training.start` is another head.
    """
    assert config.head is not None
    settings = dict(config.head)
    if "_target_" not in settings:
        raise ValueError("training.head has no _target_; expected the class of a head, as in conf/training")
    name = str(settings.pop("_target_"))
    new = getattr(registry.find_target(name, allow_targets), "new", None)
    if new is None:
        raise ValueError(f"training.head: {name} has no `new`; expected the class of a head, as in conf/training")
    known = inspect.signature(new).parameters
    for key in settings:
        if key not in known:
            raise registry.unknown(f"setting of training.head ({name})", key, list(known)[1:])
    torch.manual_seed(config.seed)
    head = new(target, **settings)
    check_fit(head, target.model)
    teacher = Teacher(target.model, head.hidden_layers)
    _check_logits(head, teacher)
    _check_lengths(config, head.depth)
    if config.start:
        _start_from(head, config.start)
    return head, teacher


def _start_from(head: Any, name: str) -> None:
    weights = type(head).load(name).state_dict()
    expected = {key: list(value.shape) for key, value in head.state_dict().items()}
    got = {key: list(value.shape) for key, value in weights.items()}
    for key in sorted(expected.keys() | got.keys()):
        if got.get(key) != expected.get(key):
            raise ValueError(
                f"training.start: {name} has {key} of shape {got.get(key)}; training.head needs {expected.get(key)}"
            )
    head.load_state_dict(weights)


def _check_logits(head: Any, teacher: Teacher) -> None:
    """Ask once, at one root."""
    tokens = torch.zeros(1, head.depth + 2, dtype=torch.int64, device=teacher.model.device)  # [1, K + 2]
    root = torch.ones(1, 1, dtype=torch.int64, device=teacher.model.device)  # [1, 1]
    hidden, expected = teacher(tokens, root, head.depth)
    with torch.no_grad():
        got = ask(head, tokens, hidden, root, torch.float32)
    if got.shape != expected.shape:
        raise ValueError(
            f"{type(head).__name__} gives logits of shape {list(got.shape)} for one root; this target needs "
            f"{list(expected.shape)} (sequences, roots, tokens ahead, vocabulary)"
        )


def _check_lengths(config: HeadTrainingConfig, depth: int) -> None:
    """Sequences must hold a root and a whole draft after the prompt."""
    data, needed = config.data, depth + 1
    prompt = 0 if data.path is not None and data.path.endswith(".jsonl") else data.prompt_tokens
    if data.new_tokens < needed:
        raise ValueError(
            f"data.new_tokens is {data.new_tokens}; a head that drafts {depth} tokens learns from a root and {depth} "
            f"more, so give at least {needed}"
        )
    if config.length < prompt + needed:
        raise ValueError(
            f"training.length is {config.length}; a prompt of {prompt} tokens, a root and the {depth} tokens that this "
            f"head drafts make {prompt + needed}, so give at least that"
        )
