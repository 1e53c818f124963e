"""The report of made-up runs: everything is on it, nothing of a run becomes markup, and no state of a run stops it."""

from __future__ import annotations

import json
import random
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from specdec import metrics
from specdec.experiments.methods import Method
from specdec.experiments.report import text, write_report
from specdec.experiments.report.examples import steps_of
from specdec.experiments.report.run_files import read_run
from specdec.experiments.report.shown import shown
from specdec.experiments.summary import summarise, without_nan
from specdec.metrics import TargetCost
from specdec.sampling import SamplingParams

from ..models import byte_tokenizer

GREEDY, WARM = SamplingParams(temperature=0.0), SamplingParams(temperature=0.8)
COUPLED = {"_target_": "specdec.acceptance.coupled.Coupled"}
REJECTION = {"_target_": "specdec.acceptance.rejection.Rejection"}
# name: chance that a token is accepted, depth, cost of drafting a step, share of texts that differ
KINDS = {
    "none": (0.0, 0, 0.0, 0.0),
    "ngram": (0.45, 8, 0.05, 0.0),
    "draft_model": (0.7, 5, 0.9, 0.02),
    "broken": (0.9, 5, 0.2, 0.4),
    "sampled": (0.6, 4, 0.7, 0.0),
}
CATEGORIES = ("code", "data", "docs", "edits", "tests")
EVIL = "<script>alert('x')</script> & <b>"


def make_run(folder: Path, names: list[str] | None = None, questions: int = 20, finished: bool = True) -> Path:
    """A run's directory as `specdec run` leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    methods = [
        Method("none", {"_target_": "specdec.drafters.none.NoDrafter"}, None, COUPLED, GREEDY, None),
        Method("ngram", {"_target_": "x.NGram", "max_nodes": 8}, None, COUPLED, GREEDY, "none"),
        Method(
            "draft_model", {"_target_": "x.DraftModel"}, {"_target_": "x.Chain", "depth": 5}, COUPLED, GREEDY, "none"
        ),
        Method("broken", {"_target_": "x.Broken"}, None, COUPLED, GREEDY, "none"),
        Method("none_warm", {"_target_": "specdec.drafters.none.NoDrafter"}, None, COUPLED, WARM, None),
        Method("sampled", {"_target_": "x.DraftModel"}, None, REJECTION, WARM, "none_warm"),
    ]
    methods = [m for m in methods if names is None or m.name in names]
    rng = random.Random(0)
    rows = [_row(rng, m, q, CATEGORIES[q % len(CATEGORIES)]) for q in range(1, questions + 1) for m in methods]
    (folder / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(yaml.safe_dump({"name": "compare", "note": EVIL, "target": {"name": "tiny"}}))
    origin: dict[str, Any] = {"time": "2025-01-02T03:04:05+00:00", "git": {"commit": "0123abc", "dirty": True}}
    origin |= {"versions": {"torch": "2.13.0"}, "argv": ["specdec", "run"], "cpu": {"model": "a CPU", "cores": 2}}
    (folder / "provenance.json").write_text(json.dumps(origin))
    if finished:
        target = {"name": "tiny", "class": "LlamaForCausalLM", "dtype": "bfloat16", "device": "cpu"}
        summary = {
            "experiment": "compare",
            "complete": True,
            "questions": questions,
            "requests": len(rows),
            "notes": [],
            "target": target | {"parameters": 13_900_000, "weight_bytes": 27_800_000, "kv_bytes_per_token": 16384},
            "environment": {"peak_bandwidth": 2.1e10, "threads": 2},
            "baseline": "none",
            "methods": summarise(methods, rows, TargetCost(13_900_000, 27_800_000, 16384), 2.1e10),
            "definitions": metrics.definitions(),
        }
        (folder / "summary.json").write_text(json.dumps(without_nan(summary)))
    return folder


def _row(rng: random.Random, method: Method, question: int, category: str) -> dict[str, Any]:
    chance, depth, cost, wrong = KINDS[method.name.partition("_warm")[0]]
    chance *= {"edits": 1.15, "data": 1.05, "docs": 0.7}.get(category, 0.95) * rng.uniform(0.85, 1.1)
    offered, accepted = [0] * depth, [0] * depth
    lengths: list[int] = []
    while sum(lengths) < 63:
        taken = 0
        while taken < depth:
            offered[taken] += 1
            if rng.random() > chance * (1 - 0.03 * taken):
                break
            accepted[taken] += 1
            taken += 1
        lengths.append(min(taken + 1, 63 - sum(lengths)))
    steps = len(lengths)
    speed = rng.lognormvariate(0, 0.06)
    phases = {"prefill": 0.02, "draft": 0.006 * cost * steps, "verify": (0.006 + 0.0004 * (depth > 0)) * steps}
    phases |= {"accept": 0.0003 * steps, "commit": 0.0002 * steps, "host": 0.0004 * steps}
    phases = {name: seconds * speed for name, seconds in phases.items()}
    seconds = sum(phases.values())
    differs = method.baseline is not None and rng.random() < wrong
    check: dict[str, Any] = {
        "comparable": method.acceptance is COUPLED,
        "equal": not differs,
        "position": 7 if differs else None,
    }
    check |= {"gap": 0.5 if differs else None, "tie": False if differs else None, "top2_gap": None, "threshold": None}
    identity = {"question_id": question, "category": category, "method": method.name, "repeat": 0, "turn": 0}
    counts = {"nodes": depth * steps, "proposed_depth": depth * steps, "accepted": sum(accepted)}
    return (
        identity
        | counts
        | {
            "prompt_tokens": 120,
            "cut_tokens": 0,
            "new_tokens": 64,
            "steps": steps,
            "forwards": steps,
            "accept_lengths": lengths,
            "offered_by_depth": offered,
            "accepted_by_depth": accepted,
            "ttft": phases["prefill"],
            "tpot": (seconds - phases["prefill"]) / 63,
            "seconds": seconds,
            "phases": phases,
            "peak_memory": 900_000_000,
            "text": f"def answer():\n    return {EVIL!r}\n",
            "token_ids": list(range(64)),
            "check": None if method.baseline is None else check,
        }
    )


class Page(HTMLParser):
    """Collects tags, attributes and texts, and checks that what is opened is closed."""

    VOID = ("meta", "br", "link", "img", "hr", "input")

    def __init__(self, file: Path):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(make_run(tmp_path_factory.mktemp("run")))


def test_everything_is_on_it(full):
    page = Page(full)
    assert full.name == "report.html"
    for word in ("none", "ngram", "draft_model", "broken", "sampled", "in distribution", "0123abc", "Figure 6."):
        assert word in page.text
    for category in CATEGORIES:
        assert category in page.text
    for name in metrics.definitions():
        assert name in page.text


def test_it_needs_nothing_from_elsewhere(full):
    assert full.stat().st_size < 3_000_000
    for tag, attributes in Page(full).tags:
        assert tag not in ("script", "link", "iframe", "img")
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert "url(" not in full.read_text(encoding="utf-8")
    assert "@import" not in full.read_text(encoding="utf-8")


def test_every_table_has_a_caption_and_every_plot_a_description(full):
    page = Page(full)
    names = [tag for tag, _ in page.tags]
    assert names.count("table") == names.count("caption")
    drawings = [a for tag, a in page.tags if tag == "svg" and a.get("aria-hidden") != "true"]
    idents = {a.get("id") for _, a in page.tags}
    assert len(drawings) == 7
    for drawing in drawings:
        assert drawing["role"] == "img"
        assert set((drawing["aria-labelledby"] or "").split()) <= idents
    listed = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(listed) == len(set(listed))


def test_text_of_a_run_stays_text(full):
    assert "<script" not in full.read_text(encoding="utf-8")
    assert EVIL in " ".join(Page(full).words)


def test_a_failed_check_stands_beside_every_speed_up(full):
    """All three places: the table, the plot and the categories."""
    page = Page(full)
    assert "failed check" in page.text
    assert "broken (failed check)" in page.text
    assert page.text.count("failed check") >= 2 + len(CATEGORIES)
    assert "broken decodes" not in page.text


@pytest.mark.parametrize(("low", "high", "bold"), [(1.01, 1.4, True), (0.98, 1.4, False), (None, None, False)])
def test_only_a_speed_up_whose_interval_lies_above_1_is_bold(tmp_path, low, high, bold):
    run = make_run(tmp_path, ["none", "ngram"])
    summary = json.loads((run / "summary.json").read_text())
    parts = [summary["methods"][1], *summary["methods"][1]["by_category"].values()]
    for part in parts:
        part["speedup"] = {"ratio": 1.2, "low": low, "high": high, "label": ""}
    (run / "summary.json").write_text(json.dumps(summary))
    file = write_report(run)
    assert "1.20×" in Page(file).text
    assert ("<b>1.20×</b>" in file.read_text()) == bold
    assert ('class="winner"' in file.read_text()) == bold


@pytest.mark.parametrize("names", [["none"], ["none", "ngram"], []], ids=["baseline only", "one method", "no method"])
def test_few_methods(tmp_path, names):
    page = Page(write_report(make_run(tmp_path, names)))
    for name in names:
        assert name in page.text


def test_killed_run(tmp_path):
    run = make_run(tmp_path, questions=3, finished=False)
    with (run / "requests.jsonl").open("a") as out:
        out.write('{"question_id": 4, "cat')
    page = Page(write_report(run))
    assert "Unfinished run" in page.text
    assert "ngram" in page.text
    assert "×" not in page.text.partition("Definitions")[0].partition("Results")[2]


def test_empty_directory(tmp_path):
    assert "No request was served" in Page(write_report(tmp_path)).text


def test_missing_directory(tmp_path):
    with pytest.raises(ValueError, match="expected the directory of a run"):
        write_report(tmp_path / "nowhere")


def test_a_value_that_does_not_exist_is_a_dash(tmp_path):
    run = make_run(tmp_path, ["none", "ngram"])
    summary = json.loads((run / "summary.json").read_text())
    for method in summary["methods"]:
        method["metrics"] = {n: float("nan") if isinstance(v, float) else v for n, v in method["metrics"].items()}
        method["metrics"]["acceptance_by_depth"] = {"conditional": [0.5, float("nan")], "unconditional": [None, 0.1]}
        method["metrics"]["tpot"] = dict.fromkeys(("p20", "p50", "p80"), float("nan"))
    summary["methods"][1]["speedup"] = {"ratio": float("nan"), "low": None, "high": None, "label": ""}
    (run / "summary.json").write_text(json.dumps(summary))
    page = Page(write_report(run))
    assert "–" in page.text
    assert "nan" not in page.text.lower().split()
    assert "None" not in page.text


def test_a_step_of_requests_together_takes_as_long_as_it_takes(tmp_path):
    """Each of them has its share of the seconds, and of the verify passes."""
    run = make_run(tmp_path, ["none", "ngram"])
    alone = {method.name: method.step_seconds for method in shown(read_run(run))}
    rows = [json.loads(line) for line in (run / "requests.jsonl").read_text().splitlines()]
    for row in rows:  # four requests like it, of which this is one
        row |= {"forwards": row["forwards"] / 4, "phases": {name: s / 4 for name, s in row["phases"].items()}}
    (run / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    together = {method.name: method.step_seconds for method in shown(read_run(run))}
    assert together == pytest.approx(alone)
    assert alone["none"] == pytest.approx(0.0069, rel=0.05)


@pytest.mark.parametrize(
    ("value", "said"), [(999.4e6, "999 MB"), (999.6e6, "1 GB"), (1000, "1 kB"), (-999_600, "-1 MB"), (0, "0 B")]
)
def test_a_number_never_needs_four_digits(value, said):
    assert text.large(value, "B").replace("\u00a0", " ") == said


def test_what_was_drafted_when_a_text_ended_within_a_path() -> None:
    """The counts tell: more was accepted than the steps kept, and then the last token kept was a drafted one."""
    tokenizer = byte_tokenizer()
    ids = tokenizer("abcdef")["input_ids"]
    row = {"token_ids": ids, "accept_lengths": [3, 2], "accepted": 3}
    assert [(s.drafted, s.own) for s in steps_of(row, tokenizer)] == [("", "a"), ("bc", "d"), ("e", "f")]
    row["accepted"] = 4
    assert [(s.drafted, s.own) for s in steps_of(row, tokenizer)] == [("", "a"), ("bc", "d"), ("ef", "")]
