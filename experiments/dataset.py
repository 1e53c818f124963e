"""Prompts of data sets in their own form: rows of a local jsonl, json or parquet file, of a folder of such, or of a
Hugging Face data set, made into questions by templates."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from specdec.experiments.data import Question, Questions, check_limits, parse, select

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
COLUMN = re.compile(r"\{(\w+)\}")
OWN_FORM = {"question_id", "category", "turns"}  # of Spec-Bench's question.jsonl
Row = Mapping[str, Any]


def load_dataset(
    turns: Sequence[str],
    category: str,
    hub: str,
    file: str,
    identity: str | None = None,
    subset: str | None = None,
    split: str = "test",
    path: str | None = None,
    limit: int | None = None,
    per_category: int | None = None,
    categories: Sequence[str] | None = None,
) -> Questions:
    """Read a data set.

    Args:
        turns: a template for each of the user's turns, with columns in braces. One that is nothing but a column which
            holds a list of texts gives a turn for each; a paragraph whose columns are all empty is left out.
        category: a template, too.
        hub: its name on the Hugging Face hub, for `datasets.load_dataset`.
        file: for messages, which file to get where.
        identity: a template that is different for every row; the row's number, from 1, by default.
        subset, split: of the data set. Of a folder's files those count whose paths below it name the subset, and the
            split, if any does.
        path: a file, or a folder of several; None to take `hub`. A file in Spec-Bench's form needs no template.
        limit, per_category, categories: as in `load_questions`.

    Raises:
        ValueError: it is neither here nor to be had; a file is not of a known form; a column is missing; a prompt is
            empty; or nothing is left. The message says which, and what to do.
    """
    check_limits(limit, per_category)
    if path is None:
        name, rows = hub, _from_hub(hub, subset, split, file)
        digest = hashlib.sha256("".join(json.dumps(row, sort_keys=True, default=str) for row in rows).encode())
    else:
        root = Path(path).expanduser()
        name, digest, rows = str(root), hashlib.sha256(), []
        for each in _files(root, subset, split, file):
            content = each.read_bytes()
            digest.update(content)
            found = list(_rows(each, content))
            if root.is_file() and found and found[0].keys() >= OWN_FORM and each.name.endswith(".jsonl"):
                return select(parse(content, each), name, digest.hexdigest(), limit, per_category, categories)
            rows += found
    questions = [_question(name, number, row, turns, category, identity) for number, row in enumerate(rows, 1)]
    _check_identities(name, questions)
    return select(questions, name, digest.hexdigest(), limit, per_category, categories)


def _from_hub(hub: str, subset: str | None, split: str, file: str) -> list[Row]:
    ways = f"get {file} and give data.path=FILE"
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"no data.path is given, and the package `datasets`, which would fetch {hub}, is not installed; {ways}, or "
            'pip install "specdec[datasets]"'
        ) from None
    try:
        return [dict(row) for row in datasets.load_dataset(hub, subset, split=split)]
    except Exception as error:  # of the network, of the hub, of its files: many kinds
        reason = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
        raise ValueError(f"{hub} could not be fetched ({reason}); where the hub cannot be reached, {ways}") from error


def _files(root: Path, subset: str | None, split: str, file: str) -> list[Path]:
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise ValueError(f"data.path: no file or folder {str(root)!r}; get {file}")
    found = sorted(p for p in root.rglob("*") if p.name.endswith(SUFFIXES) and p.is_file())
    for word in (subset, split):
        named = [p for p in found if word is not None and word in str(p.relative_to(root))]
        found = named or found
    if not found:
        raise ValueError(f"data.path: the folder {str(root)!r} holds none of {', '.join(SUFFIXES)}; get {file}")
    return found


def _rows(file: Path, content: bytes) -> Iterable[Row]:
    """Of one file.

    Raises:
        ValueError: it is damaged, or of another form.
    """
    readers: dict[str, Callable[[bytes], Iterable[Any]]] = {
        ".jsonl.gz": lambda packed: _lines(gzip.decompress(packed)),
        ".jsonl": _lines,
        ".json": _list,
        ".parquet": _parquet,
    }
    reader = next((read for suffix, read in readers.items() if file.name.endswith(suffix)), None)
    if reader is None:
        raise ValueError(f"data.path: {file.name!r} is of no known form; expected one of {', '.join(SUFFIXES)}")
    try:
        rows = list(reader(content))
    except Exception as error:  # each reader has its own kinds
        raise ValueError(f"{file} cannot be read ({' '.join(str(error).split()):.200}); get it again") from error
    if not all(isinstance(row, Mapping) for row in rows):
        raise ValueError(f"{file}: expected an object with columns in every row")
    return rows


def _lines(content: bytes) -> Iterator[Any]:
    return (json.loads(line) for line in content.splitlines() if line.strip())


def _list(content: bytes) -> list[Any]:
    found = json.loads(content)
    if not isinstance(found, list):
        raise ValueError("expected a list of objects")
    return found


def _parquet(content: bytes) -> Iterator[dict[str, Any]]:
    import polars

    return polars.read_parquet(content).iter_rows(named=True)


def _question(name: str, number: int, row: Row, turns: Sequence[str], category: str, identity: str | None) -> Question:
    where = f"{name}, row {number}"
    texts = [text for template in turns for text in _turns(template, row, where)]
    if not texts or not all(text.strip() for text in texts):
        raise ValueError(f"{where}: the prompt is empty; its columns are: {', '.join(row)}")
    made = number if identity is None else _filled(identity, row, where)
    return Question(made, _filled(category, row, where), tuple(texts))


def _turns(template: str, row: Row, where: str) -> list[str]:
    alone = COLUMN.fullmatch(template)
    value = _value(row, alone[1], where) if alone else None
    if isinstance(value, list):
        if not all(isinstance(text, str) for text in value):
            raise ValueError(f"{where}: the column {alone[1] if alone else ''} holds no list of texts")
        return value
    return [_filled(template, row, where)]


def _filled(template: str, row: Row, where: str) -> str:
    """A template with the row's values; paragraphs that have columns and whose columns are all empty fall out."""
    kept = []
    for paragraph in template.split("\n\n"):
        values = [_value(row, name, where) for name in COLUMN.findall(paragraph)]
        if not values or any(values):
            kept.append(COLUMN.sub(lambda found: str(_value(row, found[1], where)), paragraph))
    return "\n\n".join(kept)


def _value(row: Row, column: str, where: str) -> Any:
    if column not in row:
        raise ValueError(f"{where} has no column {column!r}; it has: {', '.join(row)}; set data.turns to what it has")
    return "" if row[column] is None else row[column]


def _check_identities(name: str, questions: Sequence[Question]) -> None:
    first: dict[Any, int] = {}
    for number, question in enumerate(questions, 1):
        before = first.setdefault(question.question_id, number)
        if before != number:
            raise ValueError(
                f"{name}: rows {before} and {number} are both {question.question_id!r}; set data.identity=null"
            )
