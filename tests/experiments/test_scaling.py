"""Fitted laws against times that were made of them, and a run of the experiment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specdec import loading, registry
from specdec.experiments.cli import main
from specdec.experiments.report.scaling import sentence
from specdec.experiments.scaling.fit import FIXED_POINTS, above_fixed_cost, fit, power_law
from specdec.experiments.scaling.measure import AXES, with_vocabulary

from .test_report import Page

VALUES = [1, 2, 4, 8, 16, 32]


def samples(times: Any, noise: float = 0.0) -> list[list[float]]:
    draw = np.random.default_rng(3)
    return [[float(t * np.exp(draw.normal(0, noise))) for _ in range(9)] for t in times]


def test_a_power_law_is_found_again() -> None:
    """Through two points by hand: 2 and 16 at 1 and 4 is 2 x^1.5."""
    assert power_law(np.array([1.0, 4.0]), np.array([2.0, 16.0])) == pytest.approx((1.5, 2.0))
    found = fit(VALUES, samples(0.3 * np.array(VALUES) ** 0.7))
    assert found["told"] == "power"
    assert found["power"]["exponent"] == found["power"]["low"] == pytest.approx(0.7)
    assert found["power"]["r2"] == pytest.approx(1.0)
    assert found["growth"] == pytest.approx(32**0.7)
    assert found["end"] == pytest.approx(0.7)


@pytest.mark.parametrize(("fixed", "factor", "exponent"), [(5.0, 0.1, 1.0), (1.0, 0.01, 2.0), (3.0, 0.5, 0.5)])
def test_a_fixed_cost_is_told_apart(fixed: float, factor: float, exponent: float) -> None:
    times = fixed + factor * np.array(VALUES) ** exponent
    assert above_fixed_cost(np.array(VALUES, float), times) == pytest.approx((exponent, factor, fixed), rel=1e-6)
    found = fit(VALUES, samples(times))
    assert found["told"] == ("fixed" if found["power"]["r2"] < 0.98 else "power")
    assert found["fixed"]["r2"] == pytest.approx(1.0)


def test_neither_part_is_below_0() -> None:
    """A law without a fixed cost, times that fall, and times that do not change."""
    x = np.array(VALUES, float)
    exponent, factor, fixed = above_fixed_cost(x, 2 * x)
    assert (exponent, factor) == pytest.approx((1.0, 2.0), rel=1e-6)
    assert fixed == pytest.approx(0.0, abs=1e-9)
    _, factor, fixed = above_fixed_cost(x, 5 / x)
    assert factor == 0
    assert fixed > 0
    flat = fit(VALUES, samples(np.full(6, 4.0)))
    assert flat["growth"] == 1
    assert flat["power"]["exponent"] == pytest.approx(0)
    assert flat["power"]["r2"] == 0


def test_intervals_hold_the_exponent_and_grow_with_noise() -> None:
    times = 0.3 * np.array(VALUES) ** 0.7
    widths = []
    for noise in (0.01, 0.1):
        law = fit(VALUES, samples(times, noise))["power"]
        assert law["low"] <= 0.7 <= law["high"]
        widths.append(law["high"] - law["low"])
    assert 0 < widths[0] < widths[1]


def test_sentences_say_no_more_than_r2_does() -> None:
    points = [*({"value": value} for value in (1, 2, 4, 8)), {"value": 32, "seconds": {"p50": 2.0}}]
    axis: dict[str, Any] = {"points": points, "growth": 1.4, "told": "fixed"}
    axis |= {"power": {"exponent": 0.1, "low": 0.05, "high": 0.15, "r2": 0.7}}
    law = {"exponent": 1.0, "low": 0.9, "high": 1.2, "r2": 0.995, "fixed": 1.0}
    assert sentence("batch", axis | {"fixed": law}) == (
        "Batch, 1 to 32: a step costs 1.40 times as much; it is 50 % fixed at the end, and the rest grows with the "
        "power 1.00 [0.90, 1.20] (R² 0.995)."
    )
    assert "neither law describes that (R² 0.70 and 0.80)" in sentence("batch", axis | {"fixed": law | {"r2": 0.8}})
    few = axis | {"points": points[-4:], "told": "power", "fixed": law}
    assert "no power law describes that (R² 0.70), and for another there are too few points" in sentence("batch", few)
    for ends in ({"low": 0.05}, {"high": 3.0}):
        said = sentence("batch", axis | {"fixed": law | ends})
        assert said.endswith("a part of it is fixed, and the times do not say how the rest grows."), said
    bare = {"power": {"exponent": 0.03, "low": 0.02, "high": 0.04, "r2": 0.99}, "told": "power", "fixed": law}
    assert "it grows with the power 0.03 [0.02, 0.04]" in sentence("batch", axis | bare), "this one has no limits"


def test_a_fixed_cost_is_not_told_of_few_points() -> None:
    """Three parameters go through four points whatever these are."""
    times = 5 + 0.1 * np.array(VALUES) ** 1.0
    assert fit(VALUES[1:], samples(times[1:]))["told"] == "fixed"
    assert fit(VALUES[2:], samples(times[2:]))["told"] == "power"


def test_every_axis_has_points_enough_by_default() -> None:
    given = registry.read_yaml("experiment", "scaling")["scaling"]
    assert all(len(given[axis]) >= FIXED_POINTS for axis in AXES)


def test_a_model_with_another_vocabulary(target: Path) -> None:
    model = loading.load_model(str(target))
    model.config.pad_token_id = 200  # beyond it
    made = with_vocabulary(model, 77)
    assert made.get_input_embeddings().weight.shape == (77, 32)
    assert made.get_output_embeddings().weight.shape[0] == 77
    assert made.dtype == model.dtype
    assert model.config.vocab_size != 77


SHORT = ["scaling.contexts=[8,16,32]", "scaling.nodes=[1,2,4]", "scaling.batches=[1,2,3]"]
SHORT += ["scaling.vocabularies=[64,128,256]", "scaling.at={context: 8, nodes: 2, batch: 1}", "scaling.seconds=0.05"]


@pytest.fixture
def scale(target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def run(*more: str) -> tuple[int, Path]:
        own = ["experiment=scaling", f"target.name={target}", *SHORT, "hydra.run.dir=result"]
        return main(["run", *own, *more]), tmp_path / "result"

    return run


def test_the_experiment_writes_the_usual_folder(scale: Any, capsys: Any) -> None:
    code, directory = scale()
    shown = capsys.readouterr()
    assert code == 0, shown.err
    names = {path.name for path in directory.iterdir()}
    assert names >= {"config.yaml", "overrides.yaml", "provenance.json", "summary.json", "report.html"}
    axes = json.loads((directory / "summary.json").read_text())["scaling"]["axes"]
    assert {name: [point["value"] for point in axis["points"]] for name, axis in axes.items()} == {
        "context": [8, 16, 32], "nodes": [1, 2, 4], "batch": [1, 2, 3], "vocabulary": [64, 128, 256],
    }  # fmt: skip
    for axis in axes.values():
        assert all(min(point["samples"]) > 0 and len(point["samples"]) >= 5 for point in axis["points"])
        assert axis["power"]["low"] <= axis["power"]["high"]
        assert axis["fixed"]["fixed"] >= 0
    page = Page(directory / "report.html")
    for word in ("A step's cost along each axis", "Above a fixed cost", "vocabulary", "Where it is not what varies"):
        assert word in page.text
    assert "exponent" in shown.out
    assert scale()[0] == 0
    assert "finished already" in capsys.readouterr().out
    assert main(["report", str(directory)]) == 0
    assert main(["run", f"from={directory}"]) == 1
    assert "wrote no text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("drafter=ngram", "scaling times steps without drafts and prompts: take drafter out"),
        ("backend=naive", "take backend out"),
        ("scaling.nodes=[1,2]", "scaling.nodes is [1, 2]; expected 3 different whole numbers at least, or []"),
        ("scaling.nodes=[0,1,2]", "scaling.nodes is 0; expected a whole number of at least 1"),
        ("scaling.at.batch=0", "scaling.at.batch is 0; expected a whole number of at least 1"),
        ("scaling.seconds=0", "scaling.seconds is 0; expected a number above 0"),
        (
            "scaling.contexts=[8,16,1000]",
            "the longest context with its tree has 1004 tokens; the target's limit is 160",
        ),
        ("+scaling.axis=1", "unknown setting of scaling 'axis'"),
    ],
)
def test_settings_that_cannot_be(scale: Any, capsys: Any, given: str, message: str) -> None:
    code, directory = scale(given)
    assert code == 1
    assert message in capsys.readouterr().err
    assert not directory.exists()
