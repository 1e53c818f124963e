"""The card of a trained model or a datastore: what it is, what it saw, how well it does, how to make it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from specdec.experiments.records import write_text
from specdec.experiments.training.corpus import HELD_OUT_PER_MILLE, Source
from specdec.experiments.training.datastore import DatastoreResult
from specdec.experiments.training.pretrain import PretrainResult


def write_model_card(
    folder: Path, name: str, settings: Mapping[str, Any], result: PretrainResult, command: str, torch_version: str
) -> None:
    """Write README.md.

    Args:
        settings: the training's configuration as it was given: its names stay names, not folders.
        command: that was run.
    """
    config = result.config
    teacher = settings.get("teacher")
    how = f"distilled from `{teacher}` (KL divergence at every token)" if teacher else "trained from nothing"
    if config.start:
        how = f"trained further from `{settings['start']}`{_earlier(Path(config.start))}"
    origin = f", that of `{settings['tokenizer']}`" if settings.get("tokenizer") else ""
    held_out = [f"| {step} | {loss:.3f} | {bits:.4f} |" for step, loss, bits in result.history]
    licences = sorted({s.licence for s in result.sources})
    text = f"""---
license: apache-2.0
pipeline_tag: text-generation
library_name: transformers
---
# {name}

A small Llama, {how}, so that specdec runs offline.
It continues Python source; it follows no instructions, and it is not meant for anything but measuring.

| | |
|---|---|
| parameters | {result.parameters:,} |
| shape | {", ".join(f"{key} {value}" for key, value in config.model.items())} |
| vocabulary | {config.vocab_size:,}, byte-level BPE{origin} |
| training | {config.steps:,} steps of {config.tokens_per_step:,} tokens: {result.tokens:,} tokens |
| held-out text | {result.bits_per_byte:.4f} bits per byte |
| saved as | bfloat16 safetensors |
| licence of the weights | Apache-2.0 |

## Made by

    {command}

with torch {torch_version}, seed {config.seed}, {config.threads or "torch's own number of"} threads. All settings are in
`training.yaml`, versions and machine in `provenance.json`.

## Training text

Python files of the packages below as they were installed, each text once, and {config.synthetic_documents:,}
synthetic documents (renamings in functions of the training files, and random records in several formats) made by
`experiments/training/synthetic.py`. Nothing was downloaded.

{sources_table(result.sources)}

What it saw is under: {"; ".join(licences)}.

Held out: files whose path within its source hashes (SHA-256) to one of {HELD_OUT_PER_MILLE} in 1000, the same on every
machine. Bits per byte are taken over the first 512 tokens of up to 64 of them.

| step | training loss (nats a token) | held-out bits per byte |
|---|---|---|
{chr(10).join(held_out)}
"""
    write_text(folder / "README.md", text)


def write_datastore_card(folder: Path, name: str, result: DatastoreResult, command: str) -> None:
    """Write README.md beside a datastore.

    Args:
        command: that was run.
    """
    licences = sorted({s.licence for s in result.sources})
    text = f"""# {name}

A datastore for `drafter=retrieval`: {result.tokens:,} tokens of {result.documents:,} texts, and their suffix array. It
holds the texts themselves, as tokens of the target's tokenizer, whose fingerprint is inside.

## Made by

    {command}

## Texts

Taken from the sources below, without the files held out for measuring (see `experiments/training/corpus.py`).

{sources_table(result.sources)}

What it holds is under: {"; ".join(licences) or "the licences of the files it was given"}.
"""
    write_text(folder / "README.md", text)


def sources_table(sources: Sequence[Source]) -> str:
    """One line for every source, in Markdown."""
    rows = [f"| {s.name} | {s.version} | {s.licence} | {s.files:,} | {s.bytes:,} |" for s in sources]
    return "\n".join(["| source | version | licence | files | bytes |", "|---|---|---|---|---|", *rows])


def _earlier(start: Path) -> str:
    """What the training that this one went on from had seen, if it was one of ours."""
    file = start / "training.yaml"
    if not file.exists():
        return ""
    before = yaml.safe_load(file.read_text(encoding="utf-8"))
    steps, size = before["steps"], before["tokens_per_step"]
    return f" ({before.get('output')}: {steps:,} steps of {size:,} tokens: {steps * size:,} tokens)"
