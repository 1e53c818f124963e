"""Data sets in their own form: every shipped yaml on a small local copy of its files, the hub, and what is told where
something is missing."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from specdec import registry
from specdec.experiments.data import Questions
from specdec.experiments.dataset import load_dataset
from specdec.experiments.report.examples import examples
from specdec.experiments.report.run_files import read_run

# A few rows as each data set has them, in the file it is told to be got as, and what the first one becomes.
ROWS: dict[str, tuple[str, list[dict[str, Any]], tuple[Any, str, tuple[str, ...]]]] = {
    "humaneval": (
        "HumanEval.jsonl.gz",
        [{"task_id": f"HumanEval/{i}", "prompt": f"def f{i}():\n", "test": "x"} for i in range(3)],
        ("HumanEval/0", "code", ("def f0():\n",)),
    ),
    "gsm8k": ("test.jsonl", [{"question": "How many?", "answer": "4 #### 4"}] * 3, (1, "math", ("How many?",))),
    "cnn_dm": (
        "3.0.0/test-00000-of-00001.parquet",
        [{"id": f"a{i}", "article": "Long.\n\nStory.", "highlights": "x"} for i in range(3)],
        ("a0", "summarization", ("Summarize the following article.\n\nLong.\n\nStory.\n\nSummary:",)),
    ),
    "alpaca": (
        "alpaca_data.json",
        [{"instruction": "Do", "input": "", "output": "x"}, {"instruction": "Do", "input": "{this}", "output": "x"}],
        (1, "instruction", ("Do",)),
    ),
    "mt_bench": (
        "question.parquet",
        [{"prompt_id": 81 + i, "category": "writing", "prompt": ["First", "Then"]} for i in range(3)],
        ("81", "writing", ("First", "Then")),
    ),
    "swe_bench": (
        "test.jsonl",
        [{"instance_id": "a-1", "repo": "a/b", "problem_statement": "It fails."}],
        ("a-1", "a/b", ("Resolve this issue of the repository a/b. Answer with a patch.\n\nIt fails.",)),
    ),
    "speed_bench": (
        "qualitative/test.parquet",
        [{"question_id": f"q{i}", "category": "rag", "turns": ["One", "Two"], "difficulty": None} for i in range(2)],
        ("q0", "rag", ("One", "Two")),
    ),
}


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if file.suffix == ".parquet":
        pl.DataFrame(rows).write_parquet(file)
    else:
        file.write_bytes({".gz": gzip.compress(lines), ".json": json.dumps(rows).encode()}.get(file.suffix, lines))
    return file


def read(name: str, **settings: Any) -> Questions:
    made: Questions = registry.instantiate({**registry.read_yaml("data", name), **settings}, (), "data")
    return made


def test_every_yaml_has_rows_here():
    own = {path.stem for path in (registry.CONF / "data").glob("*.yaml") if "dataset." in path.read_text()}
    assert own == ROWS.keys()


@pytest.mark.parametrize("name", ROWS)
def test_a_file_and_its_folder(name, tmp_path):
    place, rows, (identity, category, turns) = ROWS[name]
    file = write(tmp_path / "set" / place, rows)
    write(tmp_path / "set" / "other" / "validation.jsonl", [{"nothing": "of it"}])
    found = read(name, path=str(file))
    first = found.items[0]
    assert (first.question_id, first.category, first.turns) == (identity, category, turns)
    assert len(found.items) == len(rows)
    assert found.name == file.name
    assert len(read(name, path=str(file), limit=1).items) == 1
    if "test" in place:  # else nothing says which of the folder's files is meant
        assert read(name, path=str(tmp_path / "set")).items == found.items
    changed = [{**rows[0], **{key: "other" for key in rows[0] if isinstance(rows[0][key], str)}}]
    assert read(name, path=str(write(tmp_path / Path(place).name, changed))).sha256 != found.sha256


@pytest.mark.parametrize("name", ROWS)
def test_spec_benchs_form_needs_no_template(name, tmp_path):
    row = {"question_id": 81, "category": "writing", "turns": ["Write {this}.", "Again."], "reference": []}
    (found,) = read(name, path=str(write(tmp_path / "question.jsonl", [row]))).items
    assert (found.question_id, found.category, found.turns) == (81, "writing", ("Write {this}.", "Again."))


def test_values_are_no_templates(tmp_path):
    _, rows, _ = ROWS["alpaca"]
    assert read("alpaca", path=str(write(tmp_path / "a.json", rows))).items[1].turns == ("Do\n\n{this}",)


def test_from_the_hub(monkeypatch):
    """With the package, which is asked for only now."""
    _, rows, (_, _, turns) = ROWS["gsm8k"]
    asked = []

    def fetch(*names, **settings):
        asked.append((names, settings))
        return iter(rows)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=fetch))
    found = read("gsm8k", limit=2)
    assert asked == [(("openai/gsm8k", "main"), {"split": "test"})]
    assert [q.question_id for q in found.items] == [1, 2]
    assert found.items[0].turns == turns
    assert (found.name, len(found.sha256)) == ("gsm8k", 64)


def test_what_is_missing_is_told_with_what_to_get(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ValueError, match=r"`datasets`, which would fetch openai/openai_humaneval, is not installed; get "
    ) as error:
        read("humaneval")
    assert "HumanEval.jsonl.gz from github.com/openai/human-eval (data/) and give data.path=FILE" in str(error.value)
    assert 'pip install "specdec[datasets]"' in str(error.value)

    def offline(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=offline))
    with pytest.raises(
        ValueError, match=r"could not be fetched \(ConnectionError: no route to host\); .*get test.jsonl"
    ):
        read("gsm8k")
    with pytest.raises(ValueError, match=r"no file or folder .*nowhere.*; get test.jsonl from"):
        read("gsm8k", path=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"holds none of .jsonl"):
        read("gsm8k", path=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", b'{"question": "x"}\n{"quest', "cannot be read"),
        ("a.parquet", b"PAR1 not quite", "cannot be read"),
        ("a.json", b'{"question": "x"}', "expected a list of objects"),
        ("a.jsonl", b"[1]\n", "expected an object with columns in every row"),
        ("a.csv", b"question\nx\n", "of no known form; expected one of .jsonl"),
        ("a.jsonl", b'{"text": "x"}\n', "row 1 has no column 'question'; it has: text; set data.turns"),
        ("a.jsonl", b'{"question": null}\n', "row 1: the prompt is empty"),
        ("a.jsonl", b'{"question": [1]}\n', "holds no list of texts"),
        ("a.jsonl", b"", "holds no questions"),
    ],
)
def test_bad_files(name, content, told, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        read("gsm8k", path=str(tmp_path / name))
    assert told in str(error.value)
    assert name in str(error.value)


def test_rows_that_are_called_alike(tmp_path):
    _, rows, _ = ROWS["humaneval"]
    with pytest.raises(ValueError, match=r"rows 1 and 3 are both 'HumanEval/0'; set data.identity=null"):
        read("humaneval", path=str(write(tmp_path / "a.jsonl", [*rows[:2], rows[0]])))
    with pytest.raises(ValueError, match=r"data.limit is 0"):
        load_dataset(["{a}"], "c", "hub", "file", limit=0)


def test_a_run(specdec_run, tmp_path, capsys):
    """Its name, hash and count are in the provenance; the report shows the prompts."""
    _, rows, _ = ROWS["humaneval"]
    file = write(tmp_path / "HumanEval.jsonl.gz", rows)
    code, directory = specdec_run("data=humaneval", f"data.path={file}", "data.limit=2", "drafter=ngram")
    assert code == 0, capsys.readouterr().err
    about = json.loads((directory / "provenance.json").read_text())["data"]
    assert about == {"name": file.name, "sha256": read("humaneval", path=str(file)).sha256, "count": 2}
    assert {example.prompt for example in examples(read_run(directory), "ngram")} <= {row["prompt"] for row in rows}
    assert examples(read_run(directory), "ngram")[0].prompt
