"""The shipped prompts: their form, and that training never saw them."""

from __future__ import annotations

import json
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest

import specdec
from specdec.experiments.prompts import make_questions
from specdec.experiments.training.corpus import Document, read_corpus

FOLDER = Path(make_questions.__file__).resolve().parent
QUESTIONS = [json.loads(line) for line in (FOLDER / "question.jsonl").read_text(encoding="ascii").splitlines()]
SOURCES = json.loads((FOLDER / "sources.json").read_text(encoding="ascii"))


def _pinned() -> bool:
    """Whether the packages are those of constraints.txt, so that the same lines are in the same places."""
    constraints = FOLDER.parent.parent / "constraints.txt"
    lines = constraints.read_text().lower().splitlines() if constraints.exists() else []
    return all(f"{package}=={metadata.version(package)}" in lines for package in make_questions.PACKAGES)


@pytest.fixture(scope="module")
def training_text() -> str:
    documents, _ = read_corpus(["stdlib", *make_questions.PACKAGES])
    return "\0".join(d.text for d in documents if not d.held_out)


def test_form():
    assert [q["question_id"] for q in QUESTIONS] == list(range(1, len(QUESTIONS) + 1))
    for question in QUESTIONS:
        assert set(question) == {"question_id", "category", "turns", "reference"}
        for texts in (question["turns"], question["reference"]):
            assert len(texts) == 1
            assert texts[0].strip()
            assert texts[0].isascii()


def test_categories():
    counts = Counter(q["category"] for q in QUESTIONS)
    assert list(counts) == list(make_questions.CATEGORIES)
    assert min(counts.values()) >= 16
    assert len({q["turns"][0] for q in QUESTIONS}) == len(QUESTIONS)


def test_sources_are_held_out():
    assert set(SOURCES) == {str(q["question_id"]) for q in QUESTIONS}
    for question in QUESTIONS:
        source = SOURCES[str(question["question_id"])]
        assert (source == "") == (question["category"] == "data")
        assert not source or Document(source.partition(":")[0], "").held_out


def test_edits_carry_out_their_instruction():
    for question in QUESTIONS:
        if question["category"] == "edits":
            before, _, instruction = question["turns"][0].partition("\n\n# After renaming `")
            old, new = instruction.removesuffix("`:\n").split("` to `")
            assert before.removeprefix("# Before:\n").split() != question["reference"][0].split()
            assert question["reference"][0].replace(new, old).split() == before.removeprefix("# Before:\n").split()


def test_data_ends_where_a_line_does():
    for question in QUESTIONS:
        if question["category"] == "data":
            assert question["turns"][0].startswith("# data.")
            assert not question["turns"][0].endswith("\n")
            assert question["reference"][0].startswith("\n")


def test_training_never_saw_them(training_text):
    for question in QUESTIONS:
        prompt, reference = question["turns"][0], question["reference"][0]
        assert prompt not in training_text
        if question["category"] != "edits":
            around = "\n".join(prompt.splitlines()[-3:]) + "\n".join(reference.splitlines()[:3])
            assert around not in training_text, question["question_id"]


@pytest.mark.skipif(not _pinned(), reason="needs the packages that constraints.txt pins")
def test_made_again_byte_for_byte():
    questions, sources = make_questions.make_questions()
    assert questions == (FOLDER / "question.jsonl").read_text(encoding="ascii")
    assert sources == (FOLDER / "sources.json").read_text(encoding="ascii")


def test_lengths_in_tokens():
    tokenizer_file = Path(specdec.__file__).parent / "zoo" / "tiny" / "tokenizer.json"
    if not tokenizer_file.exists():
        pytest.skip("the shipped model's tokenizer is not there")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    for question in QUESTIONS:
        assert 50 <= len(tokenizer.encode(question["turns"][0]).ids) <= 400


def test_training_prompts_are_out_of_training_files(monkeypatch):
    documents = [d for d in read_corpus(["networkx"])[0] if "/algorithms/a" in d.path or d.held_out]
    monkeypatch.setattr(make_questions, "read_corpus", lambda packages: (documents, []))
    text = make_questions.make_training_questions(2)
    assert text == make_questions.make_training_questions(2)
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["question_id"] for row in rows] == list(range(1, 11))
    assert Counter(row["category"] for row in rows) == dict.fromkeys(make_questions.CATEGORIES, 2)
    seen = "\0".join(d.text for d in documents if not d.held_out)
    for row in rows:
        if row["category"] in ("code", "tests", "docs"):
            assert row["turns"][0] in seen
    monkeypatch.setattr(make_questions, "read_corpus", lambda packages: (documents[:1], []))
    with pytest.raises(ValueError, match="found no prompts of the category"):
        make_questions.make_training_questions(2)
