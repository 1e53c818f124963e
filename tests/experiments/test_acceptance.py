"""Acceptance by depth, rank and position: by hand, on the page, and from a run to the tree that is built of it."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specdec.experiments.acceptance_tables import FIRST_BUCKET, acceptance_tables, bucket_of
from specdec.experiments.intervals import Z, mean, share
from specdec.experiments.report import write_report
from specdec.experiments.report.acceptance import by_temperature

from .conftest import read_rows
from .test_report import Page, make_run


def row(question: int, *steps: tuple[int, list[int], list[int]]) -> dict[str, Any]:
    """Steps are (emitted, children, ranks)."""
    emitted, children, ranks = (list(part) for part in zip(*steps, strict=True))
    return {"question_id": question, "accept_lengths": emitted, "children": children, "ranks": ranks}


ROWS = [
    row(1, (2, [2, 1], [0]), (1, [2], []), (20, [2, 0], [1])),  # the last step is said to write much
    row(2, (1, [2], []), (3, [2, 1, 0], [0, 0]), (1, [0], [])),
    row(2, (1, [1], [])),
]


def test_tables_by_hand() -> None:
    found: Any = acceptance_tables(ROWS)
    assert found["steps"] == 7
    assert found["length"][0] == pytest.approx((2 + 1 + 2 + 1 + 3 + 1 + 1) / 7)
    first, second = found["depth"]
    assert (first["accepted"], first["offered"]) == (3, 6)
    assert first["unconditional"][0] == pytest.approx(3 / 7)
    assert (second["accepted"], second["offered"]) == (1, 2)
    best, other = found["rank"]
    assert (best["accepted"], best["offered"]) == (3, 8)
    assert (other["accepted"], other["offered"]) == (1, 5)
    assert best["unconditional"][0] == pytest.approx(3 / 7)
    cells = [[(c["accepted"], c["offered"]) for c in depth] for depth in found["depth_rank"]]
    assert cells == [[(2, 6), (1, 5)], [(1, 2)]]
    assert sum(c["unconditional"][0] for depth in found["depth_rank"] for c in depth) == found["length"][0] - 1
    assert [(part["first"], part["last"], part["steps"]) for part in found["position"]] == [(0, 15, 7)]


def test_a_step_belongs_where_its_first_token_is() -> None:
    """The first new token is the prefill's, so that a text's first step begins at 1."""
    assert [bucket_of(place) for place in (0, 15, 16, 31, 32, 63, 64)] == [0, 0, 1, 1, 2, 2, 3]
    long = row(1, (15, [1], []), (16, [1, 0], [0]), (33, [1], []), (1, [1], []))  # at 1, 16, 32, 65
    found: Any = acceptance_tables([long])
    stretches = [(part["first"], part["last"], part["steps"], part["length"][0]) for part in found["position"]]
    assert stretches == [(0, 15, 1, 1.0), (16, 31, 1, 2.0), (32, 63, 1, 1.0), (64, 127, 1, 1.0)]
    assert FIRST_BUCKET == 16


def test_rows_that_say_nothing_make_no_table() -> None:
    old = {"question_id": 1, "accept_lengths": [1, 2]}
    assert acceptance_tables([old]) is None
    plain: Any = acceptance_tables([row(1, (1, [0], []))])
    assert (plain["depth"], plain["rank"], plain["length"][0]) == ([], [], 1.0)


def test_an_interval_of_prompts_that_are_alike_is_wilsons() -> None:
    """Both have 8 of 10: nothing between them, so 20 trials count. By hand: 0.8 and z give 0.584 to 0.919."""
    found = share([(8, 10), (8, 10)])
    assert found == pytest.approx((0.8, 0.58398, 0.91933), abs=1e-4)
    assert share([(8, 10), (8, 10), (0, 0)]) == found


def test_prompts_that_differ_widen_it() -> None:
    """All of one and none of the other: as little as two trials say, one of them right."""
    low, high = share([(10, 10), (0, 10)])[1:]
    # variance of the ratio 2 * (25 + 25) / 400 = 0.25, of 20 trials 0.0125: 20 times as much, so that 1 trial counts
    n, p = 1, 0.5
    reach = Z * math.sqrt(p * (1 - p) / n + Z * Z / 4) / (1 + Z * Z)
    assert (low, high) == pytest.approx((0.5 - reach, 0.5 + reach))


def test_ends_of_intervals() -> None:
    none, low, high = share([(0, 10), (0, 10)])
    assert (none, low) == (0.0, 0.0)
    assert 0.1 < high < 0.2
    assert math.isnan(share([(1, 2)])[1])
    assert math.isnan(share([])[0])
    # means 2 and 4 of 10 each: ratio 3, variance 2 * (10^2 + 10^2) / 20^2
    assert mean([(20, 10), (40, 10)]) == pytest.approx((3, 3 - Z, 3 + Z))


@pytest.mark.parametrize("alike", [True, False])
def test_intervals_hold_what_they_promise(alike: bool) -> None:
    """40 prompts of 20 steps, each prompt with its own chance: 95 % of intervals hold the mean, give or take 4 %
    (four standard errors of 400 tries are 4.4 %; a plain Wilson interval holds it in 60 % of tries)."""
    draw, held = random.Random(7), 0
    for _ in range(400):
        chances = [0.6 if alike else draw.choice((0.3, 0.9)) for _ in range(40)]
        _, low, high = share([(sum(draw.random() < p for _ in range(20)), 20) for p in chances])
        held += low <= 0.6 <= high
    assert held / 400 == pytest.approx(0.95, abs=0.044)


def test_methods_that_differ_in_the_temperature_alone() -> None:
    def entry(name: str, temperature: float, **more: Any) -> dict[str, Any]:
        sampling = {"temperature": temperature, "top_p": 1.0}
        whole = {"name": name, "drafter": {"a": 1}, "tree": None, "acceptance": {}, "sampling": sampling}
        return whole | {"accepted_by": {"depth": [1]}} | more

    entries = [entry("warm", 1.0), entry("cold", 0.0), entry("other", 0.5, tree={"b": 2}), entry("old", 0.7)]
    entries[-1]["accepted_by"] = None
    assert [[e["name"] for e in group] for group in by_temperature(entries)] == [["cold", "warm"]]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A made-up run whose methods walked down trees."""
    run = make_run(tmp_path_factory.mktemp("run"), questions=6)
    summary = json.loads((run / "summary.json").read_text())
    for number, entry in enumerate(summary["methods"]):
        ranks = [[0, 0], [0], [1], [], [0, 2]] if entry["baseline"] else [[]] * 5
        children = [[3, 3, 3][: len(r) + 1] if entry["baseline"] else [0] for r in ranks]
        rows = [row(q, *((9, c, r) for c, r in zip(children, ranks, strict=True))) for q in range(3 + number)]
        entry["accepted_by"] = json.loads(json.dumps(acceptance_tables(rows)))
        for part in entry["by_category"].values():
            part["accepted_by"] = json.loads(json.dumps(acceptance_tables(rows, whole=False)))
        if entry["name"] == "sampled":
            cold = next(e for e in summary["methods"] if e["name"] == "draft_model")
            entry |= {name: cold[name] for name in ("drafter", "tree", "acceptance")}
    (run / "summary.json").write_text(json.dumps(summary))
    return Page(write_report(run))


def test_the_page_shows_them(page: Page) -> None:
    titles = (
        "Acceptance by depth, with intervals", "Acceptance by sibling rank", "Acceptance by depth and rank",
        "Tokens a step by position in the answer", "Acceptance of the first drafted token by category",
        "Tokens a step by temperature",
    )  # fmt: skip
    for number, title in enumerate(titles, 7):
        assert title in page.text
        assert f"Figure {number}." in page.text
    assert "80 %" in page.text  # of steps that drafted accepted one at depth 1
    assert "1 code, 2 data, 3 docs, 4 edits, 5 tests" in page.text
    drawings = [a for tag, a in page.tags if tag == "svg" and a.get("aria-hidden") != "true"]
    assert len(drawings) == 13
    idents = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(idents) == len(set(idents))


def test_from_a_run_to_a_tree(specdec_run: Callable[..., tuple[int, Path]], draft: Path, capsys: Any) -> None:
    """The run writes the vector, and `tree=sequoia` is built of that file; the report and the terminal show it."""
    model = f"drafter.model.name={draft}"
    code, directory = specdec_run("drafter=draft_model", model, "tree=comb", "tree.depth=2", "tree.width=3")
    shown = capsys.readouterr()
    assert code == 0, shown.err
    file = directory / "acceptance" / "draft_model_comb.json"
    assert "acceptance/METHOD.json" in shown.out
    assert "by rank" in shown.out
    assert [path.name for path in file.parent.iterdir()] == [file.name]  # none for plain decoding
    entry = json.loads((directory / "summary.json").read_text())["methods"][1]
    cells, vector = entry["accepted_by"]["depth_rank"], json.loads(file.read_text())
    assert len(cells[0]) == len(vector["acceptance"][0]) == 3
    assert cells[0][0]["offered"] > 0
    rows = [r for r in read_rows(directory / "requests.jsonl") if r["method"] == "draft_model_comb"]
    assert entry["accepted_by"]["steps"] == sum(r["steps"] for r in rows)
    assert sum(cell["accepted"] for depth in cells for cell in depth) == sum(r["accepted"] for r in rows)
    assert "Acceptance by sibling rank" in (directory / "report.html").read_text(encoding="utf-8")
    sequoia = ["tree=sequoia", f"tree.acceptance={file}", "tree.max_nodes=6", "hydra.run.dir=built"]
    code, _ = specdec_run("drafter=draft_model", model, *sequoia)
    assert code == 0, capsys.readouterr().err
    built = json.loads((directory.parent / "built" / "summary.json").read_text())["methods"][1]
    assert built["lossless"]["verdict"].startswith("yes")
    assert built["tree"]["acceptance"] == str(file)
