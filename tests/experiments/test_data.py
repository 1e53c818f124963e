"""Question files: Spec-Bench's form, selections, and errors that name the line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specdec.experiments.data import Question, in_groups, load_questions

from .test_run import SPEC_BENCH

GOOD = {"question_id": 1, "category": "a", "turns": ["x"]}


def write(folder: Path, *rows: object) -> str:
    file = folder / "question.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(file)


def test_selections(tmp_path):
    rows = [{"question_id": i, "category": "ab"[i % 2], "turns": [f"t{i}", "more"]} for i in range(6)]
    file = write(tmp_path, *rows, "")
    assert [q.question_id for q in load_questions(file).items] == [0, 1, 2, 3, 4, 5]
    assert [q.question_id for q in load_questions(file, limit=2).items] == [0, 1]
    assert [q.question_id for q in load_questions(file, per_category=2).items] == [0, 1, 2, 3]
    assert [q.question_id for q in load_questions(file, categories=["b"], per_category=1).items] == [1]
    assert [q.question_id for q in load_questions(file, categories="b").items] == [1, 3, 5]
    assert load_questions(file).items[2].turns == ("t2", "more")
    assert len(load_questions(file).sha256) == 64


def test_categories_take_turns(tmp_path):
    """A run that is cut short has seen all of them."""
    rows = [{"question_id": i, "category": "aaabbc"[i], "turns": ["t"]} for i in range(6)]
    assert [q.question_id for q in load_questions(write(tmp_path, *rows)).items] == [0, 3, 5, 1, 4, 2]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{not json", "not JSON"),
        ("[1]", "expected an object"),
        ({"question_id": 2, "category": "a"}, "no turns"),
        ({"question_id": 2, "turns": ["x"]}, "no category"),
        ({**GOOD, "question_id": 2, "turns": []}, "turns is []"),
        ({**GOOD, "question_id": 2, "turns": "text"}, "turns is 'text'"),
        ({**GOOD, "question_id": 2, "turns": ["x", ""]}, "none of them empty"),
        ({**GOOD, "question_id": None}, "question_id is None"),
        ({**GOOD, "question_id": 2, "category": ""}, "category is ''"),
        (GOOD, "question_id 1 is used in line 1 already"),
    ],
)
def test_errors_name_the_line(row, told, tmp_path):
    file = write(tmp_path, GOOD, row)
    with pytest.raises(ValueError) as error:
        load_questions(file)
    assert f"{file}:2" in str(error.value)
    assert told in str(error.value)


def test_errors_of_the_selection(tmp_path):
    file = write(tmp_path, GOOD)
    with pytest.raises(ValueError, match="unknown category"):
        load_questions(file, categories=["b"])
    with pytest.raises(ValueError, match="per_category is 0"):
        load_questions(file, per_category=0)
    with pytest.raises(ValueError, match="no file"):
        load_questions(str(tmp_path / "other.jsonl"))
    with pytest.raises(ValueError, match="holds no questions"):
        load_questions(write(tmp_path))


def test_groups_are_of_one_category_where_they_can_be():
    def order(categories, *sizes):
        found = in_groups([Question(i, category, ("x",)) for i, category in enumerate(categories)], sizes)
        return [question.question_id for question in found]

    assert order("abcabc", 1) == [0, 1, 2, 3, 4, 5]
    assert order("abcabc", 2) == [0, 3, 1, 4, 2, 5]
    assert order("abababab", 2) == [0, 2, 1, 3, 4, 6, 5, 7], "categories take turns"
    assert order("abcaba", 2) == [0, 3, 1, 4, 2, 5], "what is left is mixed, and last"
    assert order("ababac", 4, 2, 2) == [0, 2, 1, 3, 4, 5], "small groups where there are no large ones"
    assert order("aab", 9) == [0, 1, 2]


def test_the_shipped_prompts():
    questions = load_questions()
    assert len(questions.items) >= 80
    assert len({q.category for q in questions.items}) == 5


@pytest.mark.skipif(not SPEC_BENCH.exists(), reason="Spec-Bench's questions are not shipped")
def test_all_of_spec_bench_loads():
    assert len(load_questions(str(SPEC_BENCH)).items) == 480
