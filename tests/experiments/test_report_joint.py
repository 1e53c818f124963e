"""Several runs in one table and on one page: the schema, what differs between runs, and folders that are no runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

import specdec
from specdec.experiments.cli import main
from specdec.experiments.report.joint import write_joint
from specdec.experiments.report.results_table import COLUMNS

from .test_report import CATEGORIES, EVIL, Page, make_run

README = Path(specdec.__file__).parent / "experiments" / "README.md"


def configured(folder: Path, **settings: Any) -> Path:
    (folder / "config.yaml").write_text(yaml.safe_dump({"name": folder.name, "note": EVIL, **settings}))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two machines, with one method that both have."""
    first = make_run(tmp_path / "machines" / "a", ["none", "ngram", "draft_model"], questions=10)
    second = make_run(tmp_path / "machines" / "b", ["none", "ngram"], questions=10)
    configured(first, measure={"batch": 1, "threads": None}, data={"categories": ["code"]})
    configured(second, measure={"batch": 8, "threads": None}, data={"categories": "code", "limit": 1.5})
    edit(second, lambda s: s["methods"][1]["drafter"].update(max_nodes=4.5))
    return [first, second]


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    change(summary)
    (folder / "summary.json").write_text(json.dumps(summary))


def test_a_row_is_a_run_a_method_and_a_category(runs, tmp_path):
    written, problems = write_joint(runs)
    assert problems == []
    assert written == [
        *(run / "report.html" for run in runs),
        *(tmp_path / "machines" / f"results.{e}" for e in ("parquet", "html")),
    ]
    frame = pl.read_parquet(tmp_path / "machines" / "results.parquet")
    assert dict(list(frame.schema.items())[: len(COLUMNS)]) == {name: dtype for name, (dtype, _) in COLUMNS.items()}
    expected = [
        (str(r), m, c)
        for r, ms in zip(runs, (3, 2))
        for m in ("none", "ngram", "draft_model")[:ms]
        for c in (None, *CATEGORIES)
    ]
    assert frame.select("run", "method", "category").rows() == expected
    for run in runs:
        for entry in json.loads((run / "summary.json").read_text())["methods"]:
            own = frame.filter(pl.col("run") == str(run), pl.col("method") == entry["name"])
            for row, part in zip(own.to_dicts(), [entry, *entry["by_category"].values()], strict=True):
                found = part["metrics"]
                assert row["mean_accepted_length_pooled"] == found["mean_accepted_length_pooled"]
                assert row["tpot_p80"] == found["tpot"]["p80"]
                assert row["phase_share_draft"] == found["phase_share"]["draft"]
                assert row["acceptance_by_depth_conditional"] == found["acceptance_by_depth"]["conditional"]
                assert row["speedup_high"] == (part["speedup"] and part["speedup"]["high"])
                assert row["requests"] == part["requests"]
                assert (row["cpu"], row["cores"], row["torch"], row["dirty"]) == ("a CPU", 2, "2.13.0", True)


def test_settings_that_differ_are_columns(runs, tmp_path):
    """Of whole numbers, numbers, and JSON where it is more; those of a method only where both runs have it."""
    write_joint(runs)
    frame = pl.read_parquet(tmp_path / "machines" / "results.parquet")
    names = [name for name in frame.columns if name not in COLUMNS]
    assert names == ["config.data.categories", "config.data.limit", "config.drafter.max_nodes", "config.measure.batch"]
    values = {name: frame.filter(pl.col("category").is_null())[name].to_list() for name in names}
    assert values["config.measure.batch"] == [1, 1, 1, 8, 8]
    assert frame["config.measure.batch"].dtype == pl.Int64
    assert values["config.drafter.max_nodes"] == [None, 8, None, None, 4.5]
    assert frame["config.drafter.max_nodes"].dtype == pl.Float64
    assert values["config.data.categories"] == ['["code"]'] * 3 + ["code"] * 2


def test_the_same_settings_make_no_columns(runs, tmp_path):
    """And a run that is given twice counts once."""
    write_joint([runs[0], runs[0].parent / ".." / "machines" / "a"], tmp_path / "new" / "folder")
    frame = pl.read_parquet(tmp_path / "new" / "folder" / "results.parquet")
    assert frame.columns == list(COLUMNS)
    assert len(frame) == 3 * (1 + len(CATEGORIES))


def test_the_page(runs, tmp_path):
    edit(runs[1], lambda s: s["methods"][1]["speedup"].update(label="failed check"))
    edit(runs[1], lambda s: s.update(experiment=EVIL, complete=False))
    write_joint(runs)
    file = tmp_path / "machines" / "results.html"
    page = Page(file)
    for word in (*map(str, runs), "draft_model", "failed check", "unfinished", "measure.batch", "0123abc", *CATEGORIES):
        assert word in page.text
    assert "<script" not in file.read_text()
    assert EVIL in " ".join(page.words)
    names = [tag for tag, _ in page.tags]
    assert names.count("table") == names.count("caption") == 3 + len(CATEGORIES)


@pytest.mark.parametrize("inside", [True, False])
def test_what_was_written_is_told_from_here_or_in_full(runs, tmp_path, monkeypatch, capsys, inside: bool):
    """However the runs were given: relative to the present folder all of them, or none."""
    here = tmp_path if inside else tmp_path / "elsewhere"
    here.mkdir(exist_ok=True)
    monkeypatch.chdir(here)
    assert main(["report", str(runs[0]), os.path.relpath(runs[1])]) == 0
    files = ["a/report.html", "b/report.html", "results.parquet", "results.html"]
    folder = Path("machines") if inside else tmp_path / "machines"
    assert capsys.readouterr().out.split() == [str(folder / file) for file in files]
    assert main(["report", str(runs[0])]) == 0
    assert capsys.readouterr().out.split() == [str(folder / "a/report.html")]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda run: (run / "summary.json").unlink(), "has no summary.json; finish it with: specdec run resume="),
        (lambda run: [file.unlink() for file in run.iterdir()], "has no summary.json; give a run's folder"),
        (lambda run: (run / "summary.json").write_text('{"methods": ['), "is damaged"),
        (lambda run: (run / "summary.json").write_text("[1, 2]"), "left out"),
        (lambda run: (run / "summary.json").write_text('{"methods": [{"speedup": 3}]}'), "its files are not a run's"),
        (lambda run: edit(run, lambda s: s["methods"][1].update(requests="many")), "its files are not a run's"),
        (lambda run: (run / "config.yaml").write_text("- a list\n"), "it holds list, expected dict"),
        (lambda run: (run / "config.yaml").write_text("{"), "is damaged"),
        (lambda run: (run / "requests.jsonl").write_text("{\n{}\n"), "is damaged"),
    ],
    ids=[
        "unfinished",
        "empty",
        "torn",
        "a list",
        "no name",
        "a word for a number",
        "other yaml",
        "no yaml",
        "torn rows",
    ],
)
def test_a_bad_folder_is_told_and_the_others_are_joined(runs, tmp_path, damage, told, capsys):
    damage(runs[1])
    assert main(["report", *map(str, runs)]) == 0
    shown = capsys.readouterr()
    assert told in shown.err
    assert shown.out.splitlines()[-1].endswith("results.html")
    assert told.split(";")[0] in Page(tmp_path / "machines" / "results.html").text
    assert set(pl.read_parquet(tmp_path / "machines" / "results.parquet")["run"]) == {str(runs[0])}
    assert main(["report", str(runs[1]), str(tmp_path / "nowhere")]) == 1
    assert "there is no finished run among them" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_leaves_its_run_in_the_table(runs, tmp_path):
    """As where the folder is another user's."""
    (runs[1] / "report.html").mkdir()
    written, problems = write_joint(runs)
    assert len(written) == 3
    (problem,) = problems
    assert f"the report in {runs[1]} was left as it is" in problem
    assert len(set(pl.read_parquet(tmp_path / "machines" / "results.parquet")["run"])) == 2


def test_a_sweep_is_its_jobs(runs, tmp_path, capsys):
    sweep = tmp_path / "machines"
    (sweep / "sweep.yaml").write_text("")
    assert main(["report", str(sweep), f"into={tmp_path / 'joint'}"]) == 0
    frame = pl.read_parquet(tmp_path / "joint" / "results.parquet")
    assert frame["run"].unique(maintain_order=True).to_list() == list(map(str, runs))
    assert main(["report", "into=x"]) == 1
    assert "no run" in capsys.readouterr().err


def test_the_readme_has_every_column():
    described = README.read_text().partition("## results.parquet")[2].partition("\n## ")[0]
    for name, (dtype, words) in COLUMNS.items():
        assert f"| `{name}` | {dtype} | {words} |" in described
