"""A few generations, token by token: what was drafted and accepted stands out from what the target added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from specdec import loading, registry
from specdec.experiments.data import Questions
from specdec.experiments.records import Row
from specdec.experiments.report.run_files import RunFiles
from specdec.text import TextPieces

LOADERS = ("specdec.experiments.data.load_questions", "specdec.experiments.dataset.load_dataset")
PROMPT_CHARACTERS = 500
TEXT_CHARACTERS = 1500


@dataclass(frozen=True, slots=True)
class Step:
    """What a step emitted: the drafted part, and the target's own token at its end."""

    drafted: str
    own: str
    size: int


@dataclass(frozen=True, slots=True)
class Example:
    """One request. `steps` is empty where the tokens' texts are not known: then `text` is all there is."""

    title: str
    row: Row
    prompt: str
    text: str
    steps: list[Step]


def examples(run: RunFiles, method: str) -> list[Example]:
    """The request of `method` with the most tokens a step, the middle one, and the one with the fewest."""
    rows = [row for row in run.rows(method) if row["steps"] and row["text"]]
    rows.sort(key=lambda row: (-sum(row["accept_lengths"]) / row["steps"], str(row["question_id"]), row["repeat"]))
    if not rows:
        return []
    places = {0: "The most tokens a step", len(rows) // 2: "The middle one", len(rows) - 1: "The fewest"}
    prompts, tokenizer = _prompts(run), _tokenizer(run)
    found = []
    for place, title in sorted(places.items()):
        row = rows[place]
        turns = prompts.get(str(row["question_id"]), [])
        prompt = turns[row["turn"]] if row["turn"] < len(turns) else ""
        found.append(Example(title, row, _end_of(prompt), row["text"][:TEXT_CHARACTERS], steps_of(row, tokenizer)))
    return found


def _end_of(prompt: str) -> str:
    if len(prompt) <= PROMPT_CHARACTERS:
        return prompt
    return "…\n" + prompt[-PROMPT_CHARACTERS:].partition("\n")[2]


def steps_of(row: Row, tokenizer: Any) -> list[Step]:
    """A request's; none where the tokens' texts are not known."""
    ids: Sequence[int] = row.get("token_ids") or []
    if tokenizer is None or not ids:
        return []
    sizes = [(size - 1, size) for size in row["accept_lengths"]]
    first = row.get("first_tokens", 1)
    if sizes and (row["accepted"] or 0) > sum(drafted for drafted, _ in sizes):  # the text ended within a drafted path
        sizes[-1] = (sizes[-1][1],) * 2
    return split_text(ids, sizes, tokenizer, first)


def split_text(ids: Sequence[int], sizes: Sequence[tuple[int, int]], tokenizer: Any, first: int = 1) -> list[Step]:
    """A text in its parts: the prefill's tokens, then every step's.

    Args:
        ids: of the text.
        sizes: of every step, how many of its tokens were drafted, and all of them.
        first: tokens of the prefill.
    """
    pieces = TextPieces(tokenizer)
    steps, start = [Step(pieces.push(ids[: first - 1]), pieces.push(ids[first - 1 : first]), first)], first
    for drafted, size in sizes:
        part = ids[start : start + size]
        steps.append(Step(pieces.push(part[:drafted]), pieces.push(part[drafted:]), size))
        start += size
    steps[-1] = replace(steps[-1], own=steps[-1].own + pieces.flush())
    return steps


def _prompts(run: RunFiles) -> dict[str, Sequence[str]]:
    """By question, if the file is still the one that was run."""
    data: Mapping[str, Any] = run.config.get("data") or {}
    shipped = data.get("_target_") == LOADERS[0]
    if data.get("_target_") not in LOADERS or not (shipped or data.get("path")):  # a report asks no hub
        return {}
    try:
        whole = dict.fromkeys(("limit", "per_category", "categories"))
        questions: Questions = registry.instantiate({**data, **whole}, (), "data")
    except ValueError:
        return {}
    known = (run.provenance.get("data") or {}).get("sha256")
    if known != questions.sha256:
        return {}
    return {str(question.question_id): question.turns for question in questions.items}


def _tokenizer(run: RunFiles) -> Any:
    """The target's, if it is on this machine: a report asks nobody."""
    try:
        path = loading.model_path(str(run.summary["target"].get("name")))
        return loading.load_tokenizer(path) if Path(path).is_dir() else None
    except ValueError:
        return None
