"""A generation, step by step: what `trace.jsonl` holds, a line for each method."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from specdec.experiments.records import read_lines, write_text


class Span(NamedTuple):
    """When a phase of a step began and ended, in seconds since the trace began. `draft` is there twice: to propose,
    and to observe."""

    phase: str
    begin: float
    end: float


@dataclass(slots=True)
class TracedStep:
    """A step of one text.

    Attributes:
        tokens, parents: of the tree's nodes, the root first; its parent is -1.
        draft: each node's probability by its drafter, given the path to it; None for the root and for what was
            proposed without one.
        target: the same by the target. Both are what the request's sampling settings leave of the logits; at
            temperature 0, where the likeliest token is taken, of logits after the penalties.
        path: accepted nodes, the root first.
        own, own_target: the target's own token after them, and its probability.
        kept: tokens that became text: fewer than `path` is long where the text ended within.
        sources: by part of the drafter, the nodes that it proposed; empty where the drafter has no parts to tell apart.
        rider_tokens, rider_parents: rows that were run beside the tree, -1 for the root.
        spans: when.
    """

    tokens: list[int]
    parents: list[int]
    draft: list[float | None]
    target: list[float | None]
    path: list[int]
    own: int
    own_target: float
    sources: dict[str, list[int]] = field(default_factory=dict)
    rider_tokens: list[int] = field(default_factory=list)
    rider_parents: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    kept: int = 0

    @property
    def drafted(self) -> list[int]:
        """Accepted nodes whose tokens became text."""
        return self.path[1:][: self.kept]

    @property
    def emitted(self) -> list[int]:
        """Tokens that became text."""
        return [*(self.tokens[j] for j in self.path[1:]), self.own][: self.kept]

    def seconds(self, phase: str) -> float:
        """What a phase took."""
        return sum(span.end - span.begin for span in self.spans if span.phase == phase)


@dataclass(slots=True)
class Trace:
    """A text of one method.

    Attributes:
        method: its name.
        question_id: whose first turn is the prompt.
        sampling: the settings.
        prompt: the end of the prompt's text.
        prefill: seconds.
        first: the token that the prefill gave.
        steps: what came after it.
        words: every token id's text, see `words.Words`.
        pieces: of the text: what the prefill gave, and every step's accepted and own part. No piece ends inside a
            character.
    """

    method: str
    question_id: int | str
    sampling: dict[str, Any]
    prompt: str
    prefill: float
    first: int
    steps: list[TracedStep]
    words: dict[int, str]
    pieces: list[tuple[str, str]]

    @property
    def ids(self) -> list[int]:
        """The text."""
        return [self.first, *(token for step in self.steps for token in step.emitted)]


def name_tokens(steps: Sequence[TracedStep], word: Callable[[int], str]) -> dict[int, str]:
    """Every id that occurs, with its text."""
    ids = {token for step in steps for token in (*step.tokens, step.own, *step.rider_tokens)}
    return {token: word(token) for token in sorted(ids)}


def write_traces(file: Path, traces: Sequence[Trace]) -> None:
    """One line each."""
    write_text(file, "".join(json.dumps(asdict(trace)) + "\n" for trace in traces))


def read_traces(file: Path) -> list[Trace]:
    """What `write_traces` wrote.

    Raises:
        ValueError: there is no such file, or it is damaged.
    """
    if not file.is_file():
        raise ValueError(f"no {file}; record one with: specdec run ... trace=html")
    try:
        return [_trace(row) for row in read_lines(file)]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} is no trace of this version ({error}); record it again") from error


def _trace(row: dict[str, Any]) -> Trace:
    steps = [TracedStep(**{**step, "spans": [Span(*span) for span in step["spans"]]}) for step in row["steps"]]
    words = {int(token): word for token, word in row["words"].items()}
    return Trace(**{**row, "steps": steps, "words": words, "pieces": [(a, b) for a, b in row["pieces"]]})
