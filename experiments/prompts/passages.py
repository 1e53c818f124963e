"""Passages to be continued, one function a category: where they may be cut, and how long the parts are.

Lengths are in characters, so that the prompts do not depend on a tokenizer; about three make a token of the shipped
models.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from specdec.experiments.training import synthetic
from specdec.experiments.training.corpus import Document

TABLES = 200
PROMPT_CHARACTERS = (240, 900)
REFERENCE_CHARACTERS = (120, 900)

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Candidate:
    """A prompt, how its source goes on, and their lines ("networkx/classes/graph.py:120-150"; "" for made-up data)."""

    prompt: str
    reference: str
    source: str = ""

    @property
    def fits(self) -> bool:
        """Both parts are long enough to say something and short enough for a tiny model."""
        (least, most), (short, long) = PROMPT_CHARACTERS, REFERENCE_CHARACTERS
        return least <= len(self.prompt) <= most and short <= len(self.reference.strip()) <= long


def code(documents: Sequence[Document], rng: random.Random) -> Iterator[Candidate]:
    """Library files, cut among the statements of a function."""
    yield from _cut_functions([d for d in documents if "/test" not in d.path], rng, least_lines=8)


def tests(documents: Sequence[Document], rng: random.Random) -> Iterator[Candidate]:
    """Test files, cut within a test."""
    yield from _cut_functions([d for d in documents if "/test" in d.path], rng, least_lines=5)


def docs(documents: Sequence[Document], rng: random.Random) -> Iterator[Candidate]:
    """A docstring or a comment of several lines, cut within: what stands above and its first part are the prompt."""
    for document in documents:
        lines = document.text.splitlines()
        for start, first, last in [*_docstrings(document), *_comments(lines)]:
            if last - first >= 5:
                cut = rng.randint(first + 1, min(last - 3, first + 15))
                yield _cut(document, _start(lines, start, cut, rng), cut, last, lines)


def data(documents: Sequence[Document], rng: random.Random) -> Iterator[Candidate]:
    """Records in one format, and the same records in another one, cut near its beginning."""
    for _ in range(TABLES):
        first, rest = synthetic.table(rng).split("\n\n# data.", 1)
        second = ("# data." + rest).split("\n\n", 1)[0].rstrip("\n")
        lines = second.splitlines()
        keep = rng.randint(2, max(2, len(lines) // 4))
        yield Candidate(f"{first}\n\n" + "\n".join(lines[:keep]), "\n" + "\n".join(lines[keep:]) + "\n")


def edits(documents: Sequence[Document], rng: random.Random) -> Iterator[Candidate]:
    """A function and the instruction to rename a variable of it; the reference is the function with the new name."""
    for document in documents:
        lines = document.text.splitlines()
        for node in _functions(document):
            text = "\n".join(lines[node.lineno - 1 : node.end_lineno]) + "\n"
            found = synthetic.FUNCTION.search(text)
            if not found or found.group() != text or not 200 <= len(text) <= PROMPT_CHARACTERS[1] - 80:
                continue
            names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            names |= {a.arg for a in node.args.args}
            for _ in range(20):
                before, mark, after = synthetic.edit(rng, [text]).partition("`:\n")
                if before.rpartition("# After renaming `")[2].partition("`")[0] in names - {"self", "cls"}:
                    yield Candidate(before + mark, after, f"{document.path}:{node.lineno}-{node.end_lineno}")
                    break


def _cut_functions(documents: Sequence[Document], rng: random.Random, least_lines: int) -> Iterator[Candidate]:
    for document in documents:
        lines = document.text.splitlines()
        for node in _functions(document):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            first, last = (body[0].lineno, node.end_lineno or 0) if body else (0, 0)
            if last - first + 1 >= least_lines:
                cut = rng.randint(first + 1, (first + last) // 2)
                yield _cut(document, _start(lines, node.lineno, cut, rng), cut, last, lines)


def _functions(document: Document) -> list[Function]:
    return [n for n in ast.walk(ast.parse(document.text)) if isinstance(n, Function)]


def _docstrings(document: Document) -> Iterator[tuple[int, int, int]]:
    """Where its owner begins, its first and its last line."""
    for node in ast.walk(ast.parse(document.text)):
        if isinstance(node, Function | ast.ClassDef | ast.Module) and ast.get_docstring(node):
            first = node.body[0].lineno
            yield first if isinstance(node, ast.Module) else node.lineno, first, node.body[0].end_lineno or 0


def _comments(lines: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """The same of blocks of comment lines."""
    first = 0
    for number, line in enumerate([*lines, ""], start=1):
        if line.lstrip().startswith("#"):
            first = first or number
        elif first:
            if not any("opyright" in text for text in lines[first - 1 : number - 1]):
                yield first, first, number - 1
            first = 0


def _start(lines: Sequence[str], first: int, cut: int, rng: random.Random) -> int:
    """The function's first line, or a blank line's successor above it as long as the prompt stays in bounds."""
    room = rng.randint(*PROMPT_CHARACTERS)
    start = first
    for number in range(first, 0, -1):
        if len("\n".join(lines[number - 1 : cut])) > room:
            break
        if lines[number - 1].strip() and (number == 1 or not lines[number - 2].strip()):
            start = number
    return start


def _cut(document: Document, first: int, cut: int, last: int, lines: Sequence[str]) -> Candidate:
    """Lines `first` to `cut` (from 1, both included) as the prompt, the rest up to `last` as the reference.

    The prompt ends without its newline: then the tokens of prompt and continuation are those of the whole text.
    """
    while not lines[cut - 1].strip():
        cut -= 1
    prompt = "\n".join(lines[first - 1 : cut])
    reference = "\n" + "\n".join(lines[cut:last]) + "\n"
    if len(reference) > REFERENCE_CHARACTERS[1]:
        reference = reference[: reference.rindex("\n", 0, REFERENCE_CHARACTERS[1]) + 1]
    return Candidate(prompt, reference, f"{document.path}:{first}-{last}")
