"""The card of a trained head: what it is for, what it saw, how well it drafts, and how to make it again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from specdec.experiments.records import write_text
from specdec.experiments.training.corpus import HELD_OUT_PER_MILLE
from specdec.experiments.training.heads.config import HeadTrainingConfig
from specdec.experiments.training.heads.decoded import PROMPTS
from specdec.experiments.training.heads.distil import Data
from specdec.experiments.training.heads.prompts import HELD_OUT_SHARE
from specdec.experiments.training.heads.trainer import HeadResult
from specdec.experiments.training.model_card import sources_table


def write_card(
    folder: Path,
    raw: Mapping[str, Any],
    config: HeadTrainingConfig,
    result: HeadResult,
    decoded: float | None,
    data: Data,
    command: str,
) -> None:
    """Write README.md.

    Args:
        raw: the resolved configuration.
        decoded: mean accepted length in the real loop; None where it was not measured.
        command: that was run.
    """
    assert config.head is not None
    settings = [f"{key} {value}" for key, value in config.head.items() if key != "_target_"]
    target = raw["target"]["name"]
    written = len(data.train.written())
    depth = len(result.held_out.steps) - 1
    rows = [f"| {step} | {loss:.4f} | {accepted:.4f} |" for step, loss, accepted in result.history]
    loop = "| held-out text, decoded with the tree that `provenance.json` names | {:.4f} tokens a step |\n"
    loop = "" if decoded is None else loop.format(decoded)
    start = f"; trained further from `{config.start}`" if config.start else ""
    text = f"""---
license: apache-2.0
library_name: specdec
---
# {raw["name"]}

A head for the target `{target}` alone, trained on text which that target wrote. It is used with

    specdec run drafter={config.drafter} drafter.head=FOLDER target.name={target}

| | |
|---|---|
| class | `{config.head["_target_"]}`{"".join(f", {s}" for s in settings)} |
| training | {config.steps:,} steps of {config.batch} sequences, {config.anchors} roots in each{start} |
| loss | {config.loss}, depth k + 1 at {config.depth_decay} of depth k |
| held-out text, chains of {depth}, by walking | {result.held_out.mean_accepted_length:.4f} tokens a step |
{loop}| licence of the weights | Apache-2.0 |

A step emits the drafted tokens that are accepted and one of the target's own; decoding is greedy. Steps of the walk by
accepted tokens, from 0: {", ".join(f"{n:,}" for n in result.held_out.steps)}. The walk is described in
`experiments/training/heads/simulate.py`; decoding took the first {PROMPTS} held-out prompts.

## Made by

    {command}

with torch {torch.__version__}, seed {config.seed}, {config.threads or "torch's own number of"} threads, {config.dtype}.
All settings are in `training.yaml`, versions and machine in `provenance.json`.

## Training text

{result.sequences:,} sequences were long enough to train on. The target itself wrote {written:,} tokens, at temperatures
{", ".join(map(str, config.data.temperatures))} in turn, to prompts from the texts below.

{_sources(config, data)}

| step | training loss | held-out tokens a step |
|---|---|---|
{chr(10).join(rows)}
"""
    write_text(folder / "README.md", text)


def _sources(config: HeadTrainingConfig, data: Data) -> str:
    path = config.data.path
    if path is not None:
        part = "every tenth question" if path.endswith(".jsonl") else f"the last {HELD_OUT_SHARE:.0%} of each file"
        return f"`{Path(path).name}`. Held out: {part}."
    licences = "; ".join(sorted({s.licence for s in data.sources}))
    return f"""{sources_table(data.sources)}

They are under: {licences}. Held out: files whose path within its source hashes (SHA-256) to one of
{HELD_OUT_PER_MILLE} in 1000, the same on every machine, and the same that the shipped target's training left out."""
