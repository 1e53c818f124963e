"""Training state in safetensors: a killed run loses at most the steps since the last checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

FILE = "checkpoint.safetensors"
History = list[tuple[int, float, float]]  # step, training loss, held-out metric


def save(
    folder: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], step: int, history: History
) -> None:
    """Write weights and optimizer state to one file, atomically."""
    tensors: dict[str, Tensor] = {f"model.{n}": p.detach() for n, p in model.named_parameters()}
    for i, optimizer in enumerate(optimizers):
        for j, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{j}.{k}": torch.as_tensor(v).contiguous() for k, v in state.items()}
    temporary = folder / (FILE + ".tmp")
    save_file(tensors, temporary, metadata={"step": str(step), "history": json.dumps(history)})
    os.replace(temporary, folder / FILE)


def load(folder: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> tuple[int, History]:
    """Restore the newest checkpoint of `folder` in place; returns the next step and the history, or 0 and none."""
    if not (folder / FILE).exists():
        return 0, []
    with safe_open(folder / FILE, "pt") as file:
        about = file.metadata()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(file.get_tensor(f"model.{name}"))
        for i, optimizer in enumerate(optimizers):
            state: dict[int, dict[str, Any]] = {}
            for key in file.keys():  # noqa: SIM118  (not a dict)
                if key.startswith(f"optimizer.{i}."):
                    j, name = key.split(".")[2:]
                    state.setdefault(int(j), {})[name] = file.get_tensor(key)
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return int(about["step"]), [tuple(row) for row in json.loads(about["history"])]
