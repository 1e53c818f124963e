"""docs/lossless.md says what is there: its tables are what was counted and measured, its tests are the suite's."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from specdec import registry
from specdec.core import AcceptanceRule

TESTS = Path(__file__).parent
ROOT = TESTS.parent.parent
PAGE = (ROOT / "docs" / "lossless.md").read_text(encoding="utf-8")
COMMIT = "0123456789" * 4
RESULTS = """<testsuites><testsuite>
<testcase classname="tests.acceptance.test_a" name="test_one[x-block]">{about}</testcase>
<testcase classname="tests.acceptance.test_a" name="test_one[y[0]-block]">{about}</testcase>
<testcase classname="tests.acceptance.test_a" name="test_one[x-other]">{about}<failure>no</failure></testcase>
<testcase classname="tests.acceptance.test_b" name="test_one">{about}<system-out/></testcase>
<testcase classname="tests.acceptance.test_b" name="test_one_more">{about}<error/></testcase>
<testcase classname="tests.acceptance.test_b" name="test_two">{about}<skipped/></testcase>
<testcase classname="tests.acceptance.test_b" name="test_three"/>
</testsuite></testsuites>""".format(about=f'<properties><property name="commit" value="{COMMIT}"/></properties>')


@pytest.fixture(scope="module")
def page() -> ModuleType:
    """benchmarks/lossless_page.py."""
    spec = importlib.util.spec_from_file_location("lossless_page", ROOT / "benchmarks" / "lossless_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- the page


def test_the_tables_are_what_was_counted_and_measured(page: ModuleType) -> None:
    assert page.between_marks(page.read_proofs()) in PAGE, "make it again: python benchmarks/lossless_page.py"


def test_every_rule_has_its_row() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (yes|no) \|", PAGE, flags=re.MULTILINE))
    assert sorted(rows) == sorted(registry.names("acceptance"))
    for name, lossless in rows.items():
        rule: AcceptanceRule = registry.build("acceptance", name)
        assert rule.lossless == (lossless == "yes")


def test_every_named_test_exists(page: ModuleType) -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE)
    named += [tuple(proof.partition("[")[0].split("::")) for proof in page.named(page.read_proofs())]
    assert len(named) > 40
    for file, test in named:
        assert f"\ndef {test}(" in (TESTS / file).read_text(), f"{file}::{test}"


def test_lossy_yamls_say_so_in_their_first_line() -> None:
    for name in registry.names("acceptance"):
        rule: AcceptanceRule = registry.build("acceptance", name)
        first = (registry.CONF / "acceptance" / f"{name}.yaml").read_text().splitlines()[0]
        assert first.startswith("# LOSSY. ") == (not rule.lossless)


# --- counting


def proving(*proofs: str) -> Any:
    return {"block": {"guarantee": "", "proofs": {"exact": list(proofs)}}}


@pytest.fixture
def cases(page: ModuleType, tmp_path: Path) -> Any:
    (tmp_path / "one.xml").write_text(RESULTS)
    return page.read_cases([tmp_path / "one.xml"])


def test_cases_are_counted(page: ModuleType, cases: Any) -> None:
    assert page.count(proving("test_a.py::test_one[*-block]", "test_b.py::test_one"), cases, cases) == {
        "test_a.py::test_one[*-block]": {"passed": 2, "commit": COMMIT},
        "test_b.py::test_one": {"passed": 1, "commit": COMMIT},
    }


@pytest.mark.parametrize(
    ("proof", "told"),
    [
        ("test_a.py::test_one", "1 of 3 cases did not pass; test_a.py::test_one[x-other]: failed"),
        ("test_b.py::test_one_more", "1 of 1 cases did not pass; test_b.py::test_one_more: failed"),
        ("test_b.py::test_two", "1 of 1 cases did not pass; test_b.py::test_two: skipped"),
        ("test_b.py::test_three", "run at unknown; expected one commit, without changes"),
        ("test_b.py::test_slow", "1 of 2 cases did not pass; test_b.py::test_slow[2]: not run"),
        ("test_a.py::test_one[block]", "there is no such test"),
    ],
)
def test_nothing_is_counted_where_a_proof_failed_or_is_missing(
    proof: str, told: str, page: ModuleType, cases: Any
) -> None:
    cases["test_b.py::test_slow[1]"] = cases["test_b.py::test_one"]
    with pytest.raises(SystemExit, match="nothing was written") as stopped:
        page.count(proving("test_b.py::test_one", proof), [*cases, "test_b.py::test_slow[2]"], cases)
    assert str(stopped.value).splitlines()[1:] == [f"{proof}: {told}"]


@pytest.mark.parametrize("other", [COMMIT.replace("0", "f"), f"{COMMIT} changed"])
def test_cases_of_a_proof_are_of_one_commit(page: ModuleType, cases: Any, other: str) -> None:
    cases["test_a.py::test_one[x-block]"] = page.Case("passed", other)
    with pytest.raises(SystemExit, match=f"run at {COMMIT}, {other}; expected one commit"):
        page.count(proving("test_a.py::test_one[*-block]"), cases, cases)


def test_of_several_files_the_worst_counts(page: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "one.xml").write_text(RESULTS)
    (tmp_path / "two.xml").write_text(RESULTS.replace("<system-out/>", "<failure/>"))
    for files in (("one.xml", "two.xml"), ("two.xml", "one.xml")):
        assert page.read_cases([tmp_path / file for file in files])["test_b.py::test_one"].state == "failed"


def test_all_cases_are_known_slow_ones_too(page: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    names = page.collect(["test_block.py"])
    assert "test_block.py::test_block_is_lossless[3-4-random]" in names


# --- the tables


def test_only_what_is_between_the_marks_is_written(
    page: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "page.md"
    monkeypatch.setattr(page, "PAGE", file)
    file.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    page.write([])
    assert file.read_text() == f"before\n{page.between_marks(page.read_proofs())}\nafter\n"
    file.write_text(f"before\n{page.BEGIN}\nafter\n")
    with pytest.raises(SystemExit, match="has no place for the tables"):
        page.write([])
    assert file.read_text() == f"before\n{page.BEGIN}\nafter\n"


def test_no_table_without_proofs_and_costs(page: ModuleType) -> None:
    proofs = page.read_proofs()
    counted = page.read("proofs")
    with pytest.raises(SystemExit, match=r"block: proofs.yaml must have every rule"):
        page.tables({name: about for name, about in proofs.items() if name != "block"}, counted, None, None)
    less = {proof: about for proof, about in counted.items() if proof != "test_exact.py::test_coupled"}
    with pytest.raises(SystemExit, match=r"no cases of test_exact.py::test_coupled were counted"):
        page.tables(proofs, less, None, None)
    with pytest.raises(SystemExit, match=r"no cost of coupled in rules.json; run: specdec bench rules"):
        page.tables(proofs, counted, {"rows": []}, None)


def test_costs_and_lengths_are_shown(page: ModuleType) -> None:
    about = {"cpu": {"model": "a CPU"}, "threads": 1, "versions": {"torch": "2"}}
    seen: dict[str, Any] = {"batch": 1, "rounds": 5}
    rows = [
        {"rule": f"{name}, chain, {how}", "vocab": vocab, "microseconds": [0, time, 9000], "share": shares, **seen}
        for name in registry.names("acceptance")
        for how, time, shares in (("drawn", 2540.0, [0.01, 0.0123, 0.5]), ("fixed", 1260.0, [0.004, 0.004, 0.6]))
        for vocab in (131072, 32000)
    ]
    costs = {"rows": rows, "provenance": {"config": {"nodes": 64}, **about}}
    settings = {"target": "tiny", "draft": "tiny-draft", "temperature": 1.0, "prompts": 7}
    means = {"block": 2.5, "rejection": 2.0}
    row = {"drafts": "chain", "rule": "block", "mean_accepted_length": means, "ratio": 1.25, "low": 1.2, "high": 1.3}
    lengths = {"rows": [row], "provenance": {"config": settings, **about}}
    made = page.tables(page.read_proofs(), page.read("proofs"), costs, lengths)
    assert made.count("| at most 1.2 % of a verify pass |") == len(registry.names("acceptance"))
    assert "| rule, tree, children | V = 32,000, batch 1 | V = 131,072, batch 1 |" in made
    assert "| block, chain, drawn | 2.5, 1.2 % | 2.5, 1.2 % |" in made
    assert "| chain | `block` | 2.500 | 2.000 | 1.250 [1.200, 1.300] |" in made
