"""Expected tokens and speed-ups by hand, which term is off, and a run whose report says so."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from specdec.experiments.expected import (
    LENGTH,
    PROPOSE,
    REST,
    VERIFY,
    Terms,
    best_tree,
    expected_length,
    factors,
    off,
    predicted,
)
from specdec.experiments.methods import Method
from specdec.experiments.predict import Settings, measured_terms, prediction, words
from specdec.sampling import SamplingParams
from specdec.tree.cost import CostCurve
from specdec.tree.sequoia import choose
from specdec.tree.static import chain

from .test_report import Page

FREE = CostCurve.make(None)


def test_a_chain_is_leviathans_formula() -> None:
    """Equation 1 and theorem 3.8 of arXiv 2211.17192: chance 0.8, 5 tokens, drafts of a fifth of a step."""
    a, g, c = 0.8, 5, 0.2
    terms = predicted(chain(g).paths, ((a,),), FREE, c, batch=3)
    assert terms.length == pytest.approx((1 - a ** (g + 1)) / (1 - a))
    assert terms.speedup == pytest.approx((1 - a ** (g + 1)) / ((1 - a) * (g * c + 1)))


def test_a_tree_is_the_sum_over_its_nodes() -> None:
    """1 + 0.5 + 0.25 at depth 1, and of other chances below: 0.5 * 0.4 + 0.5 * 0.1 + 0.25 * 0.4."""
    paths = [(0,), (1,), (0, 0), (0, 1), (1, 0)]
    chances = ((0.5, 0.25), (0.4, 0.1))
    assert expected_length(paths, chances) == pytest.approx(1.75 + 0.2 + 0.05 + 0.1)
    assert expected_length([*paths, (0, 0, 0)], chances) == pytest.approx(2.1 + 0.5 * 0.4 * 0.4)  # the last row again
    assert expected_length([(0,), (1,), (2,)], chances) == pytest.approx(1.75)  # no chance is known of a third child
    assert expected_length([], chances) == 1


def test_rows_of_a_batch_cost_what_the_curve_says_of_all_of_them() -> None:
    """A curve through (4, 1.2) and (12, 2.0): 4 sequences of 3 nodes cost 2.0 where plain ones cost 1.2."""
    curve = CostCurve((1, 4, 12), (1.0, 1.2, 2.0))
    terms = predicted([(0,), (0, 0)], ((0.5,),), curve, 0.1, batch=4)
    assert terms == pytest.approx(Terms(1.75, 2.0 / 1.2, 0.2))
    assert terms.speedup == pytest.approx(1.75 / (2.0 / 1.2 + 0.2))


def test_the_best_tree_of_a_budget_is_sequoias() -> None:
    chances = ((0.5, 0.3, 0.1),)
    curve = CostCurve.make(0.1)
    trees = {nodes: best_tree(nodes, chances, curve, 0.05, 1, 4) for nodes in range(2, 9)}
    chosen = choose(chances, curve, 8, 4, 0.05)
    best = max((terms.speedup, nodes) for nodes, found in trees.items() if found for terms in [found[1]])
    assert best[0] == pytest.approx(chosen.tokens / chosen.cost)
    assert best[1] == len(chosen.paths) + 1
    assert best_tree(9, ((0.5,),), curve, 0.0, 1, 3) is None  # a chain of 3 levels has 4 nodes at most
    chained = best_tree(4, ((0.5,),), curve, 0.0, 1, 3)
    assert chained is not None
    assert chained[0] == 3
    assert chained[1] == pytest.approx(Terms(1.875, 1.3, 0.0))


def test_measured_terms_by_hand() -> None:
    """Plain: 10 steps of 0.1 s, of which the loop takes a fifth. The method: 5 forwards of 0.12 s and 0.04 s of drafts,
    with 5 of the 10 tokens drafted: 2 a step."""
    phases = {"prefill": 0.5, "draft": 0.0, "verify": 0.6, "accept": 0.1, "commit": 0.1, "host": 0.2}
    plain = [{"phases": phases, "forwards": 10, "steps": 10, "accepted": 0}]
    ours = phases | {"draft": 0.2, "verify": 0.5, "accept": 0.05, "commit": 0.05}
    found = measured_terms([{"phases": ours, "forwards": 5, "steps": 5, "accepted": 5}], plain, speedup=0.9)
    assert found[:3] == pytest.approx((2.0, 0.12 / 0.08, 0.04 / 0.08))
    assert found.rest == pytest.approx(0.9 / (2 / 2.0))
    assert found.speedup == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("measured", "wrong"),
    [
        (Terms(2.0, 1.25, 0.25, 0.95), []),
        (Terms(1.5, 1.25, 0.25, 1.0), [LENGTH]),
        (Terms(2.0, 2.0, 0.25, 1.0), [VERIFY]),
        (Terms(2.0, 1.25, 0.75, 0.98), [PROPOSE]),
        (Terms(2.0, 1.25, 0.25, 0.8), [REST]),
        (Terms(1.6, 1.25, 0.25, 1.25), [LENGTH, REST]),  # which cancel
    ],
)
def test_the_term_that_is_off_is_named(measured: Terms, wrong: list[str]) -> None:
    expected = Terms(2.0, 1.25, 0.25)
    found = factors(expected, measured)
    assert math.prod(found.values()) == pytest.approx(measured.speedup / expected.speedup)
    assert sorted(off(found)) == sorted(wrong)


def test_words() -> None:
    expected, measured = Terms(2.0, 1.25, 0.25), Terms(1.5, 1.25, 0.25)
    found = factors(expected, measured)
    row: dict[str, Any] = {"method": "chain", "factors": found, "off": off(found)}
    row["predicted"] = expected._asdict() | {"speedup": expected.speedup}
    row["measured"] = measured._asdict() | {"speedup": measured.speedup, "low": 0.9, "high": 1.1}
    assert words(row) == (
        "chain: predicted 1.33x, measured 1.00x. Off: accepted length (predicted 2.00, measured 1.50)."
    )
    row["measured"] |= {"low": 0.7, "high": 1.4}
    assert "measured 1.00x, whose 95 % interval holds the prediction." in words(row)
    row["measured"] |= {"speedup": 1.3}
    assert "measured 1.30x, by errors that cancel." in words(row)
    assert not words(row | {"off": []})
    told = words(row | {"off": [VERIFY, LENGTH]})
    assert told.endswith(
        "Off: verify cost (predicted 1.25, measured 1.25 plain steps) [and as much: accepted length (predicted 2.00, "
        "measured 1.50)]."
    )


def test_a_run_says_what_it_predicted(specdec_run: Any, draft: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Alone and two at once, each against plain decoding of its own kind; the vector is a method's own."""
    model = f"drafter.model.name={draft}"
    inner = f"{{_target_: specdec.loading.load_model, name: {draft}}}"
    drafter = f"{{_target_: specdec.drafters.draft_model.DraftModel, model: {inner}}}"
    methods = [f"+methods.{name}.drafter={drafter}" for name in ("comb", "free", "pair")]
    shapes = ["+methods.pair.batch=2", "+methods.comb.tree=comb", "+methods.free.tree=best_first"]
    predict = "predict={acceptance: comb, curve: 0.02, draft_cost: 0.2, budgets: [2, 4], batches: [1, 2]}"
    code, directory = specdec_run("drafter=draft_model", model, *methods, *shapes, predict)
    shown = capsys.readouterr()
    assert code == 0, shown.err
    summary = json.loads((directory / "summary.json").read_text())
    assert {m["name"]: (m["baseline"], m["batch"]) for m in summary["methods"]} == {
        "none_b1": (None, 1), "comb": ("none_b1", 1), "free": ("none_b1", 1), "draft_model": ("none_b1", 1),
        "none_b2": (None, 2), "pair": ("none_b2", 2),
    }  # fmt: skip
    assert all(m["lossless"]["verdict"].startswith("yes") for m in summary["methods"] if m["baseline"])
    found = summary["prediction"]
    assert [row["method"] for row in found["methods"]] == ["comb", "draft_model", "pair"]  # best_first has no one shape
    assert [(row["batch"], row["nodes"]) for row in found["grid"]] == [(1, 2), (1, 4), (2, 2), (2, 4)]
    for row in found["methods"]:
        entry = next(m for m in summary["methods"] if m["name"] == row["method"])
        assert row["measured"]["speedup"] == entry["speedup"]["ratio"]
        assert math.prod(row["factors"].values()) == pytest.approx(
            row["measured"]["speedup"] / row["predicted"]["speedup"]
        )
    page = Page(directory / "report.html")
    assert "Predicted and measured" in page.text
    assert "Predicted speed-up by tree budget" in page.text
    assert "greedy, 2 prompts at once" in page.text
    assert "Predicted/measured" in shown.out


def test_a_run_measures_its_own_curve(specdec_run: Any, draft: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Once; and the page says so."""
    predict = "predict={acceptance: [0.5], curve: measure, curve_seconds: 0.05, budgets: [2, 4, 64], batches: [1, 4]}"
    given = ["drafter=draft_model", f"drafter.model.name={draft}", "tree=chain", "data.limit=1", predict]
    code, directory = specdec_run(*given)
    assert code == 0, capsys.readouterr().err
    measured = json.loads((directory / "curve.json").read_text())
    found = json.loads((directory / "summary.json").read_text())["prediction"]
    assert found["curve"] == {"rows": measured["nodes"], "cost": measured["cost"], "source": "measured by this run"}
    assert found["draft_cost"] == measured["draft_cost"] > 0
    beyond = {(row["batch"], row["nodes"]) for row in found["grid"] if row["extrapolated"]}
    assert {(4, 64)} >= beyond
    assert "costs of rows measured by this run" in Page(directory / "report.html").text
    (directory / "summary.json").unlink()
    assert specdec_run(*given)[0] == 0
    assert json.loads((directory / "curve.json").read_text()) == measured


def test_a_curve_that_nobody_measured_is_extrapolated_everywhere() -> None:
    settings = Settings(acceptance=[0.5], curve=0.02, budgets=(2,), batches=(1,))
    found = prediction(settings, [], {}, [], [])
    assert found is not None
    assert [row["extrapolated"] for row in found["grid"]] == [True]
    assert found["curve"]["source"].startswith("given: 0.02 a row")


def test_cells_of_a_grid_share_a_vector(specdec_run: Any, capsys: Any) -> None:
    """It is named without the cell."""
    predict = "predict={acceptance: recycling, curve: 0.02, budgets: [2], batches: [1]}"
    code, directory = specdec_run("drafter=recycling", "data.limit=2", "grid=[{batch: [1, 2]}]", predict)
    assert code == 0, capsys.readouterr().err
    summary = json.loads((directory / "summary.json").read_text())
    families = {entry["cell"]["family"] for entry in summary["methods"]}
    assert families == {"none", "recycling"}
    assert len(summary["methods"]) == 4
    assert summary["prediction"]["source"] == "recycling"


def test_nothing_can_be_predicted_by_what_drafted_nothing() -> None:
    method = Method("shy", {}, None, {}, SamplingParams(), "none")
    row = {"method": "shy", "question_id": 1, "accept_lengths": [1], "children": [[0]], "ranks": [[]]}
    assert prediction(Settings(acceptance="shy"), [method], {}, [{}], [row]) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{curve: 0.1}", "predict.acceptance has no value; give chances, a file, or a method of the run: ngram"),
        ("{acceptance: nowhere.json}", "acceptance 'nowhere.json' cannot be read"),
        ("{acceptance: [0.5], curve: -1}", "a row's cost is -1"),
        ("{acceptance: [0.5], curve: measure, curve_seconds: 0}", "predict.curve_seconds is 0; expected a number"),
        ("{acceptance: [0.5], budgets: [1, 4]}", "predict.budgets is 1; expected a whole number of at least 2"),
        ("{acceptance: [0.5], batches: 3}", "predict.batches is 3; expected a list"),
        ("{acceptance: [0.5], budget: [2]}", "unknown setting of predict 'budget'"),
        ("3", "setting of predict: got 3; expected a mapping"),
    ],
)
def test_settings_that_cannot_be(specdec_run: Any, capsys: Any, given: str, message: str) -> None:
    code, directory = specdec_run("drafter=ngram", f"predict={given}")
    assert code == 1
    assert message in capsys.readouterr().err
    assert not directory.exists()


def test_a_methods_batch_is_a_whole_number(specdec_run: Any, capsys: Any) -> None:
    assert specdec_run("drafter=ngram", "+methods.a.drafter=ngram", "+methods.a.batch=0")[0] == 1
    assert "methods.a.batch is 0; expected a whole number of at least 1" in capsys.readouterr().err
