"""Answers in Spec-Bench's form, one file a method, so that its scripts can read them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specdec.experiments.records import Row, write_lines


def write_answers(folder: Path, target: str, rows: Sequence[Row]) -> None:
    """A line per question, a choice per repeat: turns, decoding steps, new tokens, wall time and accept lengths."""
    folder.mkdir(exist_ok=True)
    for method in dict.fromkeys(row["method"] for row in rows):
        answers: dict[Any, dict[str, Any]] = {}
        for row in sorted((r for r in rows if r["method"] == method), key=lambda r: (r["repeat"], r["turn"])):
            answer = answers.setdefault(
                row["question_id"],
                {
                    "question_id": row["question_id"],
                    "category": row["category"],
                    "answer_id": f"{method}-{row['question_id']}",
                    "model_id": f"{target}-{method}",
                    "choices": [],
                    "tstamp": time.time(),
                },
            )
            choices = {c["index"]: c for c in answer["choices"]}
            if row["repeat"] not in choices:
                empty: dict[str, Any] = {"index": row["repeat"]}
                empty |= {key: [] for key in ("turns", "decoding_steps", "new_tokens", "wall_time", "accept_lengths")}
                answer["choices"].append(empty)
            choice = answer["choices"][-1]
            choice["turns"].append(row["text"])
            choice["decoding_steps"].append(row["steps"])
            choice["new_tokens"].append(row["new_tokens"])
            choice["wall_time"].append(row["seconds"])
            choice["accept_lengths"] += row["accept_lengths"]
        write_lines(folder / f"{method}.jsonl", answers.values())
