"""Prompts in the form of Spec-Bench's question.jsonl: `{"question_id", "category", "turns", "reference"?}` a line."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdec.registry import unknown

SHIPPED = Path(__file__).parent / "prompts" / "question.jsonl"


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation to be held: the user's turns, one after the other."""

    question_id: int | str
    category: str
    turns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Questions:
    """A selection from a file.

    Attributes:
        name: of the file, without its folder.
        sha256: of the whole file.
        items: the questions chosen; categories take turns, so that a run that is cut short has seen all of them.
    """

    name: str
    sha256: str
    items: tuple[Question, ...]


def load_questions(
    path: str | None = None,
    limit: int | None = None,
    per_category: int | None = None,
    categories: Sequence[str] | None = None,
) -> Questions:
    """Read a question file.

    Args:
        path: the file; None for the shipped prompts.
        limit: at most so many questions.
        per_category: the first so many of each category.
        categories: only these.

    Raises:
        ValueError: the file or a category is not there, a line is not in the form (file and line are named), or nothing
            is left.
    """
    file = Path(path).expanduser() if path is not None else SHIPPED
    check_limits(limit, per_category)
    if not file.is_file():
        raise ValueError(f"data.path: no file {str(file)!r}; expected a question.jsonl in Spec-Bench's form")
    content = file.read_bytes()
    questions = parse(content, file)
    return select(questions, str(file), hashlib.sha256(content).hexdigest(), limit, per_category, categories)


def check_limits(limit: object, per_category: object) -> None:
    """Refuse what selects nothing.

    Raises:
        ValueError: neither a whole number of at least 1 nor None.
    """
    for name, value in (("limit", limit), ("per_category", per_category)):
        if value is not None and (type(value) is not int or value < 1):
            raise ValueError(f"data.{name} is {value!r}; expected a whole number of at least 1, or null for all")


def select(
    questions: list[Question],
    name: str,
    sha256: str,
    limit: int | None,
    per_category: int | None,
    categories: Sequence[str] | None,
) -> Questions:
    """Those chosen of the questions in `name`, a file or a data set; see `load_questions`."""
    short = Path(name).name
    if isinstance(categories, str):
        categories = [categories]
    if categories is not None:
        known = {q.category for q in questions}
        for category in categories:
            if category not in known:
                raise unknown(f"category of {short}", category, known)
        questions = [q for q in questions if q.category in categories]
    if per_category is not None:
        seen: Counter[str] = Counter()
        questions = [q for q in questions if _count(seen, q.category) <= per_category]
    if not questions:
        raise ValueError(f"{name} holds no questions")
    places: Counter[str] = Counter()
    turns = sorted(questions, key=lambda q: _count(places, q.category))  # stable
    return Questions(short, sha256, tuple(turns[:limit]))


def in_groups(questions: Sequence[Question], sizes: Iterable[int]) -> list[Question]:
    """The questions in the order in which they are served together: as many blocks of the largest size as can be are of
    one category, in the order of their first questions; what is left is put into blocks of the next size likewise."""
    ordered, left = [], list(questions)
    for size in sorted(set(sizes), reverse=True):
        places = {question.question_id: place for place, question in enumerate(left)}
        categories: dict[str, list[Question]] = {}
        for question in left:
            categories.setdefault(question.category, []).append(question)
        blocks = [of[i : i + size] for of in categories.values() for i in range(0, len(of) - size + 1, size)]
        blocks.sort(key=lambda block: places[block[0].question_id])
        ordered += [question for block in blocks for question in block]
        taken = {question.question_id for question in ordered}
        left = [question for question in left if question.question_id not in taken]
    return ordered + left


def _count(seen: Counter[str], category: str) -> int:
    seen[category] += 1
    return seen[category]


def parse(content: bytes, file: Path) -> list[Question]:
    """The lines of a question file; errors name the file and the line."""
    questions: list[Question] = []
    lines: dict[int | str, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: not JSON ({error}); expected one question a line") from None
        question = _question(row, where)
        if question.question_id in lines:
            first = lines[question.question_id]
            raise ValueError(f"{where}: question_id {question.question_id!r} is used in line {first} already")
        lines[question.question_id] = number
        questions.append(question)
    return questions


def _question(row: Any, where: str) -> Question:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a {type(row).__name__}; expected an object with question_id, category and turns")
    for key in ("question_id", "category", "turns"):
        if key not in row:
            raise ValueError(f"{where}: no {key}; expected question_id, category and turns")
    identity, category, turns = row["question_id"], row["category"], row["turns"]
    if isinstance(identity, bool) or not isinstance(identity, int | str):
        raise ValueError(f"{where}: question_id is {identity!r}; expected a number or a string")
    if not isinstance(category, str) or not category:
        raise ValueError(f"{where}: category is {category!r}; expected a string")
    if not isinstance(turns, list) or not turns or not all(isinstance(t, str) and t for t in turns):
        raise ValueError(f"{where}: turns is {turns!r:.60}; expected a list of strings, none of them empty")
    return Question(identity, category, tuple(turns))
