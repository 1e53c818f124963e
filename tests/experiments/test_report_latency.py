"""What the page says of latencies, of the warm-up, of many methods and of a grid's best cell."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from specdec.experiments.leaderboard import by_category, numbers
from specdec.experiments.lossless import Check
from specdec.experiments.report.acceptance import acceptance_figures
from specdec.experiments.report.figures import figures
from specdec.experiments.report.headline import headline
from specdec.experiments.report.page import facts, render
from specdec.experiments.report.run_files import read_run
from specdec.experiments.report.shown import shown
from specdec.experiments.report.svg import MARKERS
from specdec.experiments.step_times import step_times

from .conftest import read_rows
from .test_leaderboard import both, method, speedup, summary

NGRAM = "specdec.drafters.ngram.NGram"


def test_times_of_steps_are_pooled(tmp_path: Path) -> None:
    rows = [{"method": "a", "seconds": number / 100} for number in range(101)]
    rows += [{"method": "b", "seconds": None}]  # served together: nobody knows a step's own time
    (tmp_path / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert step_times(tmp_path / "steps.jsonl") == {
        "a": pytest.approx({"p20": 0.2, "p50": 0.5, "p80": 0.8, "p99": 0.99})
    }
    assert step_times(tmp_path / "none.jsonl") == {}


def test_a_runs_latencies_and_warm_up(specdec_run):
    code, directory = specdec_run("drafter=ngram", "measure.noise=true", "measure.threads=1")
    assert code == 0
    run = read_run(directory)
    spent = run.summary["environment"]["warm_up"]
    assert list(spent) == ["none", "ngram", "none_again"]
    assert all(seconds > 0 for seconds in spent.values())
    assert dict(facts(run))["Warm-up, not counted"].startswith("none ")
    steps = [row["seconds"] for row in read_rows(directory / "steps.jsonl") if row["method"] == "ngram"]
    found = run.methods[1]["metrics"]["step_time"]
    assert min(steps) <= found["p20"] <= found["p50"] <= found["p99"] <= max(steps)
    assert "step_time" in run.summary["definitions"]
    drawn = {figure.ident: figure for figure in figures(shown(run), None, "float32")}
    assert {"TPOT p99 ms", "step p50 ms", "step p99 ms"} <= set(drawn["tpot"].columns)
    assert drawn["ttft"].columns == ["method", "p20 ms", "p50 ms", "p80 ms", "p99 ms"]
    assert "p99" in drawn["tpot"].drawing
    for ident in ("speedup", "tpot", "ttft", "by-category", "phases"):
        assert not [row for row in drawn[ident].rows if row[0] == "none_again"]
    page = render(run)
    assert "latencies are medians" not in page
    assert "1 threads" not in page


class Run:
    """Entries of a summary without their requests."""

    def __init__(self, *entries: dict[str, Any]):
        self.methods = [{**entry, "cell": None} for entry in entries]

    def rows(self, name: str) -> list[Any]:
        return []


def test_sixteen_methods_look_different() -> None:
    drafted = [method(f"m{i}", "none", {"overall": speedup(1.0 + i / 10)}) for i in range(16)]
    run: Any = Run(method("none", None, {"overall": None}, "baseline"), *drafted)
    looks = {m.name: (m.class_, m.marker % MARKERS) for m in shown(run)}
    assert len(set(looks.values())) == 17
    assert looks["m0"][0] == "m0"
    assert looks["m8"][0] == "m0 again"
    assert looks["none"][0] == "base"


def test_plain_decoding_again_takes_no_colour() -> None:
    run: Any = Run(*summary(a=both(*[speedup(1.5)] * 3))["methods"])
    assert {m.name: m.class_ for m in shown(run)} == {"none": "base", "a": "m0", "none_again": "base"}


def test_the_best_of_a_grids_cells_is_called_that() -> None:
    cells: list[dict[str, Any]] = [{"family": "a", "batch": b, "context": None, "nodes": None} for b in (1, 2, 4)]
    entries = [method(f"a_b{c['batch']}", "none", {"overall": speedup(1.0 + c["batch"] / 10)}) for c in cells]
    placed = [{**entry, "cell": cell} for entry, cell in zip(entries, cells, strict=True)]
    first = headline(placed)[0]
    told = "The best of 3 cells, and the best of many looks better than it is: a_b4 decodes 1.40× as fast"
    assert first.startswith(told)
    assert not headline(placed[:1])[0].startswith("The best of")


def test_tables_for_a_tracker_have_numbers() -> None:
    found = summary(a=both(speedup(1.5), speedup(0.9), speedup(1.2)))
    for entry in found["methods"]:
        entry["metrics"] = {**entry["metrics"], "tokens_per_second": 3.0}
    names, rows = numbers(found)
    row = dict(zip(names, rows[1], strict=True))
    assert (row["method"], row["ratio"], row["low"], row["high"]) == ("a", 1.2, 1.18, 1.22)
    assert row["noise"] == pytest.approx(1.02)
    assert row["accepted_length"] == 2.0
    assert row["verify"] == 0.8
    assert dict(zip(names, rows[0], strict=True))["ratio"] is None
    names, rows = by_category(found)
    assert names[:2] == ["method", "category"]
    assert [row[:2] for row in rows] == [[m, c] for m in ("none", "a", "none_again") for c in ("code", "prose")]
    row = dict(zip(names, rows[2], strict=True))
    assert (row["requests"], row["ratio"], row["noise"]) == (4, 1.5, pytest.approx(1.05))


def test_panels_of_many_methods_are_folded_and_their_numbers_kept(specdec_run) -> None:
    more = [f"+methods.n{length}.drafter={{_target_: {NGRAM}, length: {length}}}" for length in range(2, 9)]
    code, directory = specdec_run("drafter=ngram", "data.limit=1", *more)
    assert code == 0
    drawn = acceptance_figures(shown(read_run(directory)))
    assert [figure.folded for figure in drawn if figure.ident == "accepted-depth"] == [True]
    page = render(read_run(directory))
    numbers_ = [int(found) for found in re.findall(r"<b>Figure (\d+)\.</b>", page)]
    assert sorted(numbers_) == list(range(1, len(numbers_) + 1))
    assert page.index('<details class="more">') < page.index('id="plot-accepted-depth-title"')
    assert page.count("<details") == page.count("</details>")


def test_all_texts_that_part_are_in_one_table(specdec_run, monkeypatch) -> None:
    different = Check(True, equal=False, position=0, gap=1.0, tie=False)
    monkeypatch.setattr("specdec.experiments.measure.lossless.compare", lambda *_: different)
    code, directory = specdec_run("drafter=ngram", "+methods.suffix.drafter=suffix", "measure.repeats=3")
    assert code == 3
    page = render(read_run(directory))
    assert page.count("Where texts part") == 1
    table = page.partition('<table class="failures">')[2].partition("</table>")[0]
    assert [re.findall(r'<th scope="row">(\w+)</th>', part) for part in table.split("<tbody>")[1:]] == [
        ["suffix"],
        ["ngram"],
    ]
    assert table.count("and 5 more") == 2
