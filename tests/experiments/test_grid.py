"""A grid: which cells there are, what a method is in each, the order of requests, contexts, and a run of all axes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from specdec import registry
from specdec.experiments import grid, measure
from specdec.experiments.cli import main
from specdec.experiments.config import Measure
from specdec.experiments.context import to_length
from specdec.experiments.data import Question
from specdec.experiments.grid import Place, read_grid, sized
from specdec.experiments.measure import plan
from specdec.experiments.methods import make_methods
from specdec.experiments.records import key_of
from specdec.experiments.report import curves
from specdec.experiments.report.shown import Shown

from .conftest import POSITIONS, QUESTIONS, read_rows

NGRAM = registry.read_yaml("drafter", "ngram")
SUFFIX = registry.read_yaml("drafter", "suffix")
CHAIN = registry.read_yaml("tree", "chain")
BEST = registry.read_yaml("tree", "best_first")


def methods(cells: Any, noise: bool = False, **named: Any) -> tuple[Any, ...]:
    given = named or {"ngram": {"drafter": "ngram"}, "draft": {"drafter": "draft_model", "tree": BEST}}
    raw = {"methods": given, "acceptance": "coupled", "sampling": "greedy", "grid": cells, "measure": {"batch": 2}}
    return make_methods(raw, (), noise)


# --- cells


def test_every_combination_once():
    given = [{"batch": [1, 4], "nodes": [8]}, {"batch": [4, 1]}, {"context": [64], "batch": [1]}, {"batch": [4]}]
    assert [tuple(cell.values()) for cell in read_grid(given)] == [
        (1, None, 8),
        (4, None, 8),
        (4, None, None),
        (1, None, None),
        (1, 64, None),
    ]
    assert read_grid([{"nodes": [8]}]) == [{"batch": None, "context": None, "nodes": 8}]
    assert read_grid([]) == read_grid(None) == []


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"batch": [1]}, "expected a list of mappings"),
        ([{}], "expected a list of mappings"),
        ([{"bacth": [1]}], "batch"),
        ([{"batch": 4}], "expected a list of numbers of at least 1"),
        ([{"batch": []}], "expected a list of numbers"),
        ([{"batch": [0]}], "of at least 1"),
        ([{"nodes": [1]}], "of at least 2"),
        ([{"context": [True]}], "of at least 1"),
    ],
)
def test_what_is_no_grid_is_refused(raw, said):
    with pytest.raises(ValueError, match=said):
        read_grid(raw)


def test_trees_are_given_a_size_where_they_have_one():
    assert sized(NGRAM, None, 5) == ({**NGRAM, "max_nodes": 5}, None)
    assert sized({"_target_": "x"}, CHAIN, 5) == ({"_target_": "x"}, {**CHAIN, "length": 4}), "and the root"
    assert sized(NGRAM, BEST, 9) == (NGRAM, {**BEST, "max_nodes": 9}), "a tree that was given goes first"
    own = {"_target_": "x", "tree": "chain"}
    assert sized(own, None, 3) == ({"_target_": "x", "tree": {**CHAIN, "length": 2}}, None)
    assert sized({"_target_": "x", "tree": {"paths": [[0]]}}, None, 3) is None
    assert sized({"_target_": "x"}, {"paths": [[0]]}, 3) is None
    assert sized({"_target_": "x"}, None, 3) is None


# --- methods


def test_the_same_cell_said_twice_is_one():
    """Without a batch a cell has the method's own, here measure.batch."""
    found = methods([{"batch": [2]}, {"nodes": [4]}, {"batch": [2], "nodes": [4]}], ngram={"drafter": "ngram"})
    assert [m.name for m in found] == ["none_b2", "ngram_b2", "ngram_b2_n4"]
    own = methods([{"nodes": [4]}], ngram={"drafter": "ngram", "batch": 3})
    assert [(m.name, m.batch) for m in own] == [("none_b3", 3), ("ngram_b3_n4", 3)]


def test_a_baseline_for_every_batch_and_context_and_none_for_a_tree_size():
    found = methods([{"batch": [1, 4]}, {"context": [64]}, {"nodes": [4, 8]}])
    assert {m.name: m.baseline for m in found} == {
        "none_b1": None,
        "ngram_b1": "none_b1",
        "draft_b1": "none_b1",
        "none_b4": None,
        "ngram_b4": "none_b4",
        "draft_b4": "none_b4",
        "none_b2_c64": None,
        "ngram_b2_c64": "none_b2_c64",
        "draft_b2_c64": "none_b2_c64",
        "none_b2": None,
        "ngram_b2_n4": "none_b2",
        "draft_b2_n4": "none_b2",
        "ngram_b2_n8": "none_b2",
        "draft_b2_n8": "none_b2",
    }
    by_name = {m.name: m for m in found}
    assert by_name["draft_b2_n8"].tree["max_nodes"] == 8
    assert by_name["draft_b1"].tree == BEST
    assert by_name["ngram_b2_n4"].drafter["max_nodes"] == 4
    assert by_name["ngram_b2_n4"].place.about == {"family": "ngram", "batch": 2, "context": None, "nodes": 4}
    assert by_name["none_b2"].place == Place("none", 2)
    assert by_name["none_b4"].place.about["family"] == "none"


def test_plain_again_is_in_every_cell():
    found = methods([{"batch": [1, 4]}], noise=True, ngram={"drafter": "ngram"})
    assert [(m.name, m.baseline, m.is_again) for m in found] == [
        ("none_b1", None, False),
        ("ngram_b1", "none_b1", False),
        ("none_b1_again", "none_b1", True),
        ("none_b4", None, False),
        ("ngram_b4", "none_b4", False),
        ("none_b4_again", "none_b4", True),
    ]
    assert found[-1].place == Place("none_again", 4)


def test_every_sampling_setting_has_its_baselines():
    warm = {"drafter": "ngram", "sampling": {"temperature": 1.0}}
    found = methods([{"batch": [1, 4]}], ngram={"drafter": "ngram"}, warm=warm)
    assert {m.name: m.baseline for m in found if m.baseline} == {
        "ngram_b1": "none_t0_b1",
        "ngram_b4": "none_t0_b4",
        "warm_b1": "none_t1_b1",
        "warm_b4": "none_t1_b4",
    }


def test_what_has_no_size_is_not_in_the_cells_with_nodes_and_it_is_said():
    lookahead = {"_target_": "specdec.drafters.lookahead.Lookahead"}
    found = methods([{"batch": [1]}, {"nodes": [4]}], ngram={"drafter": "ngram"}, look={"drafter": lookahead})
    assert [m.name for m in found if m.baseline] == ["ngram_b1", "look_b1", "ngram_b2_n4"]
    (sentence,) = grid.lacking([m.place for m in found if m.baseline])
    assert "look" in sentence
    assert "ngram" not in sentence
    assert not list(grid.lacking([m.place for m in methods([{"batch": [1]}])])), "nothing is lacking without such cells"


def test_a_tree_that_cannot_be_so_small_is_refused_before_anything_is_loaded():
    sequoia = registry.read_yaml("tree", "sequoia")
    with pytest.raises(ValueError, match="max_nodes"):
        methods([{"nodes": [2]}], draft={"drafter": "draft_model", "tree": {**sequoia, "max_nodes": 0}})


# --- the order of requests


def test_cells_of_a_batch_size_are_side_by_side_and_sizes_take_turns():
    found = methods([{"batch": [1, 2]}], ngram={"drafter": "ngram"})
    questions = [Question(i, "code", ("x",)) for i in range(4)]
    order = [(c.method.name, [q.question_id for q in c.questions], c.chunk) for c in plan(found, questions, Measure())]
    assert order == [
        ("none_b1", [0], 0),
        ("ngram_b1", [0], 0),
        ("none_b1", [1], 0),
        ("ngram_b1", [1], 0),
        ("none_b2", [0, 1], 0),
        ("ngram_b2", [0, 1], 0),
        ("none_b1", [2], 2),
        ("ngram_b1", [2], 2),
        ("none_b1", [3], 2),
        ("ngram_b1", [3], 2),
        ("none_b2", [2, 3], 2),
        ("ngram_b2", [2, 3], 2),
    ]


def test_without_a_grid_the_order_is_that_of_the_questions():
    found = methods([], ngram={"drafter": "ngram"})
    questions = [Question(i, "code", ("x", "y")[: i + 1]) for i in range(3)]
    order = [
        (c.method.name, [q.question_id for q in c.questions], c.turn) for c in plan(found, questions, Measure(batch=2))
    ]
    assert order == [
        ("none", [0, 1], 0),
        ("ngram", [0, 1], 0),
        ("none", [1], 1),
        ("ngram", [1], 1),
        ("none", [2], 0),
        ("ngram", [2], 0),
        ("none", [2], 1),
        ("ngram", [2], 1),
    ]


def test_groups_must_be_full_and_contexts_must_fit():
    places = [None, Place("a", 1), Place("a", 4, context=100)]
    grid.check_counts(places, 8)
    grid.check_counts([None], 7)
    for questions, limit in ((6, 4), (3, 4)):
        with pytest.raises(ValueError, match=f"data.limit={limit}"):
            grid.check_counts(places, questions)
    grid.check_contexts(places, 100, 60)
    grid.check_contexts(places, 0, 60)
    with pytest.raises(ValueError, match="at most 99"):
        grid.check_contexts(places, 99, 60)


# --- contexts


class Letters:
    """A tokenizer: a token a letter."""

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [ord(letter) for letter in text]}


def fitted(prompt: str, length: int, texts: list[str], number: int) -> str:
    questions = [Question(i, "code", (text,)) for i, text in enumerate(texts)]
    ids = to_length([ord(c) for c in prompt], length, Letters(), questions[number], questions)
    assert len(ids) == length
    return "".join(map(chr, ids))


def test_a_prompt_is_cut_or_others_come_before_it():
    texts = ["abc", "def", "ghi"]
    assert fitted("def", 2, texts, 1) == "ef"
    assert fitted("def", 3, texts, 1) == "def"
    assert fitted("def", 5, texts, 1) == "ghdef", "the next one's text"
    assert fitted("def", 9, texts, 1) == "ghiabcdef"
    assert fitted("def", 11, texts, 1) == "ghiabcghdef", "round again, but never its own"
    assert fitted("ab", 5, ["ab"], 0) == "abaab", "the only text there is"
    assert fitted("xyz", 8, texts, 2) == "abcdexyz", "later turns have more than their own text"


# --- a run


def test_a_run_of_all_axes(specdec_run, draft, capsys):
    """The cells are what they are called, every one is held against its own baseline, and the report shows the axes."""
    cells = "grid=[{batch: [1, 3]}, {context: [20, 90]}, {nodes: [3, 6]}]"
    code, folder = specdec_run("experiment=latency", cells, f"methods.draft_model.drafter.model.name={draft}")
    assert code == 0, capsys.readouterr().err
    summary = json.loads((folder / "summary.json").read_text())
    rows = read_rows(folder / "requests.jsonl")
    entries = {entry["name"]: entry for entry in summary["methods"]}
    assert {e["baseline"] for e in entries.values()} == {None, "none_b1", "none_b3", "none_b1_c20", "none_b1_c90"}
    for row in rows:
        cell = entries[row["method"]]["cell"]
        served = sum(len(q["turns"]) > row["turn"] for q in QUESTIONS)
        assert len(row["together"]) == min(cell["batch"], served)
        assert cell["context"] in (None, row["prompt_tokens"])
        assert cell["nodes"] is None or row["nodes"] <= (cell["nodes"] - 1) * row["steps"]
        assert row["prompt_tokens"] + row["new_tokens"] <= POSITIONS
    assert all(e["lossless"]["verdict"].startswith(("yes", "baseline")) for e in entries.values())
    assert json.loads((folder / "machine.json").read_text())["bandwidth"]["read"]["best"] > 0
    for name, entry in entries.items():
        steps = entry["metrics"]
        assert steps["verify_step"]["bytes"] > 0
        assert steps["verify_step"]["bandwidth_share"] > 0
        assert (steps["draft_step"] is not None) == name.startswith("draft_model")
    page = (folder / "report.html").read_text()
    for axis in ("batch", "context", "nodes"):
        assert f'id="plot-tpot-{axis}-title"' in page
        assert f'id="plot-speedup-{axis}-title"' in page
    assert 'id="plot-roofline-title"' in page
    assert "20 tokens of context" in page
    assert "3 prompts at once" in page


def test_a_grid_goes_on_where_it_was_and_can_be_repeated(specdec_run, monkeypatch, capsys):
    """What is left of a kill in a cell is served again, and no request twice; texts come out the same once more."""
    served, run_cell = [], measure.run_cell

    def stop_at_the_fourth(*args):
        if len(served) == 4:
            raise KeyboardInterrupt
        served.append(args)
        return run_cell(*args)

    monkeypatch.setattr(measure, "run_cell", stop_at_the_fourth)
    code, folder = specdec_run("drafter=ngram", "grid=[{batch: [1, 3], context: [9]}]", "machine=measure")
    assert code == 130
    before, machine = read_rows(folder / "requests.jsonl"), (folder / "machine.json").read_text()
    monkeypatch.setattr(measure, "run_cell", run_cell)
    assert main(["run", "resume=result"]) == 0, capsys.readouterr().err
    rows = read_rows(folder / "requests.jsonl")
    assert rows[: len(before)] == before
    assert len({key_of(row) for row in rows}) == len(rows) == 4 * sum(len(q["turns"]) for q in QUESTIONS)
    assert {row["prompt_tokens"] for row in rows} == {9}
    assert (folder / "machine.json").read_text() == machine, "a run is held against what it began with"
    assert main(["run", "from=result", "hydra.run.dir=again"]) == 0, capsys.readouterr().err


# --- curves


def shown(family: str, seconds: float, ratio: float | None = None, **cell: Any) -> Shown:
    place = Place(family, **{"batch": 1, **cell})
    speedup = None if ratio is None else {"ratio": ratio, "low": ratio / 2, "high": 2 * ratio, "label": ""}
    tpot = {"p20": seconds / 2, "p50": seconds, "p80": 2 * seconds, "p99": 3 * seconds}
    entry = {
        "name": place.name,
        "cell": place.about,
        "metrics": {"tpot": tpot},
        "speedup": speedup,
        "baseline": "none_b1",
    }
    return Shown(name=place.name, class_="m0", marker=1, entry=entry, tpots=[], step_seconds=None)


def test_a_curve_is_a_method_whose_cells_differ_along_one_axis():
    cells = [shown("a", 1, batch=b, nodes=n) for b in (4, 1) for n in (8, 2)]
    cells += [shown("a", 1, batch=9), shown("b", 1, nodes=2), shown("b", 1, nodes=8), shown("b", 1, nodes=4, context=7)]
    along = {c.name: [value for value, _ in c.points] for c in curves.curves(cells, "batch")}
    assert along == {"a n2": [1, 4], "a n8": [1, 4]}
    along = {c.name: [value for value, _ in c.points] for c in curves.curves(cells, "nodes")}
    assert along == {"a b1": [2, 8], "a b4": [2, 8], "b": [2, 8]}
    assert curves.curves(cells, "context") == []
    assert curves.times(cells, "context") is None


def test_curves_say_what_they_show():
    cells = [shown("a", 0.002, 1.5, batch=1), shown("a", 0.004, 0.5, batch=8)]
    times, speedups = curves.times(cells, "batch"), curves.speedups(cells, "batch")
    assert times is not None
    assert "a at 1: 2.00, 8: 4.00." in times
    assert speedups is not None
    assert "a at 1: 1.50×, 8: 0.50×." in speedups
    assert curves.speedups([shown("none", 1, batch=1), shown("none", 1, batch=2)], "batch") is None
