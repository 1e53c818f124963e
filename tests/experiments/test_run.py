"""`specdec run`: every shipped experiment shortened, interleaving, conversations, limits, and going on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from omegaconf import OmegaConf

from specdec import loading, registry
from specdec.experiments import measure, workbench
from specdec.experiments.cli import main
from specdec.experiments.lossless import Check
from specdec.experiments.machine_noise import noise_of
from specdec.experiments.records import key_of
from specdec.target import Target

from ..fakes import write_datastore
from ..heads import make_head
from .conftest import POSITIONS, QUESTIONS, read_rows

EXPERIMENTS = sorted(path.stem for path in (registry.CONF / "experiment").glob("*.yaml"))
MEASURED = [name for name in EXPERIMENTS if not name.startswith("train_") and name not in ("scaling", "load")]
SPEC_BENCH = Path(__file__).parents[3] / "shared" / "data" / "spec_bench" / "question.jsonl"
TURNS = sum(len(question["turns"]) for question in QUESTIONS)


@pytest.fixture(scope="session")
def small(target: Path, draft: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """Overrides that give an experiment small parts for the small target in place of the zoo's."""
    folder = tmp_path_factory.mktemp("parts")
    tokenizer = loading.load_tokenizer(str(target))
    write_datastore(folder / "datastore.bin", [[5, 6, 7]], len(tokenizer), loading.fingerprint(tokenizer))
    attached = Target(loading.load_model(str(target)))

    def part(drafter: dict[str, Any], key: str) -> object:
        kind = drafter["_target_"].split(".")[-2]
        if key == "head" and not (folder / kind).exists():
            make_head(kind, attached).save(folder / kind)
        return {"head": folder / kind, "path": folder / "datastore.bin", "skip": "[0]", "model": draft}[key]

    def overrides(experiment: str) -> list[str]:
        with hydra.initialize_config_module("specdec.conf", version_base="1.3"):
            config: Any = OmegaConf.to_container(hydra.compose("run", [f"experiment={experiment}"]))
        drafters = {f"methods.{name}.drafter": method["drafter"] for name, method in config["methods"].items()}
        drafters |= {f"{n}.drafter": d["drafter"] for n, d in drafters.items() if isinstance(d.get("drafter"), dict)}
        given = [(n, k, part(d, k)) for n, d in drafters.items() for k in ("head", "path", "skip", "model") if k in d]
        cells = ["grid=[{batch: [1, 3]}]"] if config["grid"] else []  # there are three questions
        cells += ["predict.curve_seconds=0.05"] if config["predict"] else []
        return [f"{n}.{k}{'.name' if k == 'model' else ''}={value}" for n, k, value in given] + cells

    return overrides


def test_every_yaml_says_what_it_is_and_how_to_run_it():
    for file in sorted(registry.CONF.rglob("*.yaml")):
        head = [line for line in file.read_text().splitlines() if not line.startswith("# @package")]
        comment = "\n".join(head[: next(i for i, line in enumerate(head) if not line.startswith("#"))])
        named = file.parent.name if file.parent.name == "training" else file.stem
        command = next((f"specdec {word}" for word in ("train", "export") if named.startswith(word)), "specdec run")
        assert command in comment, f"{file} must begin with a comment: what it is and the command that runs it"


@pytest.mark.parametrize("experiment", MEASURED)
def test_every_experiment_runs(experiment, specdec_run, small, capsys):
    code, directory = specdec_run(f"experiment={experiment}", "measure.repeats=1", *small(experiment))
    shown = capsys.readouterr()
    assert code == 0, shown.err
    names = "config.yaml overrides.yaml provenance.json requests.jsonl steps.jsonl summary.json report.html answers"
    assert {*names.split()} <= {path.name for path in directory.iterdir()}
    summary = json.loads((directory / "summary.json").read_text())
    rows = read_rows(directory / "requests.jsonl")
    assert summary["complete"]
    assert Counter(row["method"] for row in rows) == {method["name"]: TURNS for method in summary["methods"]}
    assert {method["lossless"]["verdict"] for method in summary["methods"]} <= {"baseline", "yes", "in distribution"}
    for method in summary["methods"]:
        assert set(method["metrics"]) | {"speedup"} == set(summary["definitions"])
        assert (method["speedup"] is None) == (method["baseline"] is None)
        assert method["name"] in shown.out
    assert str(directory.name) in shown.out
    assert "report.html" in shown.out
    assert "cut from the left" in summary["notes"][0]
    steps = read_rows(directory / "steps.jsonl")
    assert Counter(key_of(s) for s in steps) == {key_of(r): r["steps"] for r in rows if r["steps"]}
    assert sum(s["emitted"] for s in steps) == sum(sum(r["accept_lengths"]) for r in rows)
    assert [s["ranks"] for s in steps] == [ranks for r in rows for ranks in r["ranks"]]
    assert [s["children"] for s in steps] == [children for r in rows for children in r["children"]]
    assert all(rank < count for s in steps for rank, count in zip(s["ranks"], s["children"], strict=False))
    assert all(len(s["children"]) == len(s["ranks"]) + 1 >= s["emitted"] for s in steps)


def test_methods_take_turns_and_prompts_are_the_same(specdec_run, draft):
    model = f"drafter.model.name={draft}"
    code, directory = specdec_run("drafter=draft_model", model, "+methods.ngram.drafter=ngram", "measure.repeats=2")
    assert code == 0
    rows = read_rows(directory / "requests.jsonl")
    assert [row["method"] for row in rows] == ["none", "ngram", "draft_model"] * (TURNS * 2)
    for first in range(0, len(rows), 3):
        together = rows[first : first + 3]
        assert len({(r["question_id"], r["turn"], r["repeat"], r["prompt_tokens"]) for r in together}) == 1
        assert together[0]["token_ids"] == together[1]["token_ids"] == together[2]["token_ids"]
        assert together[0]["check"] is None
        assert together[1]["check"]["equal"]
    assert [r["repeat"] for r in rows] == [0] * (TURNS * 3) + [1] * (TURNS * 3)


def test_questions_served_together_get_the_same_texts(specdec_run, tmp_path):
    """Turns that only some of a group have are served without the others; the groups are what a speed-up is over."""
    alone = specdec_run("drafter=ngram", "hydra.run.dir=alone")
    code = specdec_run("drafter=ngram", "measure.batch=3", "hydra.run.dir=together")[0]
    assert alone[0] == 0
    directory = tmp_path / "together"
    assert code == 0
    rows = {key_of(row): row for row in read_rows(directory / "requests.jsonl")}
    texts = {key_of(row): row["token_ids"] for row in read_rows(tmp_path / "alone" / "requests.jsonl")}
    assert {key: row["token_ids"] for key, row in rows.items()} == texts
    assert {tuple(row["together"]) for row in rows.values()} == {(1, "three", 2), (2,)}
    first, second = rows["ngram", 1, 0, 0], rows["ngram", 2, 0, 0]
    assert first["phases"] == second["phases"]
    assert 3 * first["forwards"] == pytest.approx(max(rows["ngram", id_, 0, 0]["steps"] for id_ in (1, "three", 2)))
    entry = json.loads((directory / "summary.json").read_text())["methods"][1]
    assert entry["lossless"]["verdict"] == "yes"
    assert entry["requests"] == TURNS
    tokens, seconds = (sum(rows[key][name] for key in rows if key[0] == "ngram") for name in ("new_tokens", "seconds"))
    assert entry["metrics"]["tokens_per_second"] == pytest.approx(tokens / seconds)


def test_a_categorys_speed_up_is_of_groups_of_its_own(specdec_run, tmp_path):
    """Times are shared out over a group: what was served beside another category has none of its own."""
    for batch, folder in ((3, "mixed"), (2, "apart")):
        more = (f"measure.batch={batch}", "measure.noise=true", f"hydra.run.dir={folder}")
        assert specdec_run("drafter=ngram", *more)[0] == 0
    mixed, apart = (json.loads((tmp_path / folder / "summary.json").read_text()) for folder in ("mixed", "apart"))
    assert any("1 of 1 groups that were served together are of several" in note for note in mixed["notes"])
    assert not any("served together" in note for note in apart["notes"])
    assert mixed["methods"][1]["speedup"]["ratio"] > 0
    parts = mixed["methods"][1]["by_category"]
    assert parts["data"]["speedup"]["ratio"] is parts["data"]["metrics"]["tokens_per_second"] is None
    assert parts["data"]["metrics"]["mean_accepted_length_pooled"] >= 1
    rows = read_rows(tmp_path / "apart" / "requests.jsonl")
    assert {tuple(row["together"]) for row in rows} == {(1, 2), (2,), ("three",)}
    for category, part in apart["methods"][1]["by_category"].items():
        own = [[r for r in rows if (r["category"], r["method"]) == (category, name)] for name in ("ngram", "none")]
        ours, theirs = (sum(r["new_tokens"] for r in some) / sum(r["seconds"] for r in some) for some in own)
        assert part["speedup"]["ratio"] == pytest.approx(ours / theirs)


def test_plain_decoding_twice_tells_the_noise(specdec_run, capsys):
    """The second time comes last, gives the same texts, and stands beside every speed-up as what it is."""
    more = ["+methods.suffix.drafter=suffix", "only=[suffix,ngram]", "measure.noise=true"]
    code, directory = specdec_run("drafter=ngram", "+methods.recycling.drafter=recycling", *more)
    shown = capsys.readouterr().out
    assert code == 0
    order = ["none", "suffix", "ngram", "none_again"]
    assert [row["method"] for row in read_rows(directory / "requests.jsonl")] == order * TURNS
    entries = {entry["name"]: entry for entry in json.loads((directory / "summary.json").read_text())["methods"]}
    again = entries["none_again"]
    assert again["lossless"]["verdict"] == "yes"
    assert again["speedup"]["label"] == "plain again"
    for part in (again, *again["by_category"].values()):
        assert part["speedup"]["noise"] == noise_of(part["speedup"]) >= 1
    for name in ("suffix", "ngram"):
        assert entries[name]["speedup"]["noise"] == again["speedup"]["noise"]
        for category, part in entries[name]["by_category"].items():
            assert part["speedup"]["noise"] == again["by_category"][category]["speedup"]["noise"]
    assert "Recommended: " in shown
    board = (directory / "leaderboard.md").read_text()
    assert all(f"| {name} | " in board for name in order)
    assert "Recommended: " in (directory / "report.html").read_text()


def test_repeats_and_what_comes_before_teach_drafters_nothing(specdec_run, tmp_path, capsys):
    """Every repeat is served with the same knowledge, whether or not the first question warmed up and was shown."""
    lengths = {}
    for folder, *more in (("cold", "measure.warmup_tokens=0"), ("warm", "measure.warmup_tokens=8", "stream=8")):
        code, _ = specdec_run("drafter=suffix", "measure.repeats=2", f"hydra.run.dir={folder}", *more)
        assert code == 0, capsys.readouterr().err
        for row in read_rows(tmp_path / folder / "requests.jsonl"):
            found = lengths.setdefault((folder, row["repeat"]), {})
            found[row["method"], row["question_id"], row["turn"]] = row["accept_lengths"], row["nodes"]
    assert len(lengths) == 4
    assert all(found == lengths["cold", 0] for found in lengths.values())


def test_noise_is_measured_wherever_there_is_a_speed_up(specdec_run):
    """By default; not where nothing is compared, and then it is not said to be missing."""
    with hydra.initialize_config_module("specdec.conf", version_base="1.3"):
        default = OmegaConf.to_container(hydra.compose("run").measure)
        loaded = OmegaConf.to_container(hydra.compose("run", ["experiment=load"]).measure)
    assert (default["noise"], loaded["noise"]) == (True, False)
    code, directory = specdec_run("drafter=none", "measure.noise=true", "data.limit=1")
    assert code == 0
    assert [row["method"] for row in read_rows(directory / "requests.jsonl")] == ["none"]


def test_a_conversation_goes_on_with_the_answer(specdec_run, target):
    code, directory = specdec_run("drafter=ngram")
    assert code == 0
    turns = {
        r["turn"]: r for r in read_rows(directory / "requests.jsonl") if r["question_id"] == 2 and r["method"] == "none"
    }
    tokenizer = loading.load_tokenizer(str(target))
    texts = QUESTIONS[1]["turns"]
    asked = [texts[0], texts[0] + turns[0]["text"] + texts[1]]
    assert [turns[i]["prompt_tokens"] for i in (0, 1)] == [len(tokenizer(text)["input_ids"]) for text in asked]


def test_a_long_prompt_keeps_its_end(specdec_run):
    code, directory = specdec_run("drafter=none")
    assert code == 0
    (row,) = (row for row in read_rows(directory / "requests.jsonl") if row["question_id"] == "three")
    assert row["cut_tokens"] > 0
    assert row["prompt_tokens"] == POSITIONS - 8


def test_answers_are_in_the_form_of_spec_bench(specdec_run):
    code, directory = specdec_run("drafter=ngram", "measure.repeats=2")
    assert code == 0
    answers = read_rows(directory / "answers" / "ngram.jsonl")
    assert [a["question_id"] for a in answers] == [1, "three", 2]  # categories take turns
    assert {"answer_id", "model_id", "category", "tstamp"} <= set(answers[0])
    choice = answers[2]["choices"][1]
    assert choice["index"] == 1
    lists = [choice[name] for name in ("turns", "decoding_steps", "new_tokens", "wall_time")]
    assert [len(values) for values in lists] == [3] * 4
    assert len(choice["accept_lengths"]) == sum(choice["decoding_steps"])


def test_the_time_limit_ends_with_a_whole_question(specdec_run, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: float(next(clock)))
    code, directory = specdec_run("drafter=ngram", "measure.time_limit=1", "measure.warmup_tokens=0")
    assert code == 0
    summary = json.loads((directory / "summary.json").read_text())
    assert not summary["complete"]
    assert summary["questions"] < len(QUESTIONS)
    assert (
        len({Counter(r["method"] for r in read_rows(directory / "requests.jsonl"))[m] for m in ("none", "ngram")}) == 1
    )
    assert "before the time limit of 1 s; measure.time_limit=null serves all" in summary["notes"][0]
    page = (directory / "report.html").read_text(encoding="utf-8")
    assert f"{summary['questions']} of {len(QUESTIONS)} questions" in page


def test_a_stopped_run_goes_on_where_it_was(specdec_run, monkeypatch, capsys):
    served, run_cell = [], measure.run_cell

    def stop_at_the_fifth(*args):
        if len(served) == 5:
            raise KeyboardInterrupt
        served.append(args)
        return run_cell(*args)

    monkeypatch.setattr(measure, "run_cell", stop_at_the_fifth)
    code, directory = specdec_run("drafter=ngram")
    assert code == 130
    assert "resume=result" in capsys.readouterr().err
    before = read_rows(directory / "requests.jsonl")
    assert len(before) == 5
    # as a kill in the middle of a line would leave them
    with (directory / "steps.jsonl").open("a") as file:
        file.write('{"question_id": 2, "method": "ngram", "repeat": 0, "turn": 1, "step": 1}\n{"question')
    with (directory / "requests.jsonl").open("a") as file:
        file.write('{"question_id": 2, "category": "co')

    monkeypatch.setattr(measure, "run_cell", run_cell)
    assert main(["run", "resume=result"]) == 0
    rows = read_rows(directory / "requests.jsonl")
    assert rows[:5] == before
    assert len({key_of(row) for row in rows}) == len(rows) == 2 * TURNS
    assert len(read_rows(directory / "steps.jsonl")) == sum(row["steps"] for row in rows)
    assert json.loads((directory / "summary.json").read_text())["complete"]
    assert len(json.loads((directory / "provenance.json").read_text())["earlier"]) == 1

    monkeypatch.setattr(measure, "run_cell", None)  # a finished run serves nothing any more
    assert main(["run", "resume=result"]) == 0
    assert (
        main(["run", "resume=result", *yaml.safe_load((directory / "overrides.yaml").read_text()), "name=other"]) == 1
    )
    assert 'other settings (name: "run" -> "other")' in capsys.readouterr().err
    assert main(["run", "resume=result", "measure.repeats=2"]) == 1
    told = capsys.readouterr().err
    assert "other settings (measure.repeats: 1 -> 2); go on with its own: specdec run resume=result" in told


@pytest.mark.slow
def test_a_killed_run_goes_on(target, questions, tmp_path):
    own = [
        f"target.name={target}",
        f"data.path={questions}",
        "measure.repeats=40",
        "measure.noise=false",
        f"hydra.run.dir={tmp_path / 'killed'}",
    ]
    command = [sys.executable, "-m", "specdec.experiments.cli", "run"]
    environment = {**os.environ, "PYTHONPATH": str(loading.PACKAGE.parent)}
    child = subprocess.Popen([*command, *own], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    rows = tmp_path / "killed" / "requests.jsonl"
    end = time.monotonic() + 120
    while time.monotonic() < end and not (rows.exists() and rows.read_bytes().count(b"\n") > 20):
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    before = rows.read_bytes()
    assert before.count(b"\n") < 2 * TURNS * 40
    subprocess.run([*command, "resume=killed"], cwd=tmp_path, env=environment, check=True)
    assert rows.read_bytes().startswith(before[: before.rindex(b"\n")])
    assert len({key_of(row) for row in read_rows(rows)}) == len(read_rows(rows)) == 2 * TURNS * 40


def test_a_run_that_cannot_be_built_leaves_no_folder(specdec_run, capsys):
    code, directory = specdec_run("drafter=ngram", "drafter.length=0")
    assert code == 1
    assert "ngram needs" in capsys.readouterr().err
    assert not directory.exists()


def test_a_run_stopped_before_it_wrote_anything_leaves_no_folder(specdec_run, monkeypatch, capsys, tmp_path):
    """Neither its own nor those around it."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("specdec.experiments.run.build", stop)
    assert specdec_run("drafter=ngram", "hydra.run.dir=some/where")[0] == 130
    assert "go on with: specdec run target.name=" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_stopped_after_its_summary_lacks_nothing_when_it_goes_on(specdec_run, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("specdec.experiments.run.write_report", stop)
        code, directory = specdec_run("drafter=ngram", "measure.noise=true", "data.limit=1")
    assert code == 130
    assert (directory / "summary.json").exists()
    assert not (directory / "report.html").exists()
    assert {path.stem for path in (directory / "answers").iterdir()} == {"none", "ngram", "none_again"}
    assert (directory / "leaderboard.md").exists()
    assert main(["run", f"resume={directory}"]) == 0
    assert (directory / "report.html").exists()


def test_a_failed_losslessness_check_is_in_the_exit_status(specdec_run, monkeypatch, capsys):
    """Every text differs by more than rounding; and it does so when the finished run is looked at again."""
    monkeypatch.setattr(
        measure.lossless, "compare", lambda *_: Check(True, equal=False, position=0, gap=1.0, tie=False)
    )
    code, directory = specdec_run("drafter=ngram")
    assert code == 3
    assert "the losslessness check failed for ngram" in capsys.readouterr().err
    assert json.loads((directory / "summary.json").read_text())["complete"]
    assert main(["run", "resume=result"]) == 3


def test_an_exact_target_has_no_ties(specdec_run, capsys):
    code, directory = specdec_run("drafter=ngram", "target.dtype=bfloat16", "backend.exact=true", "measure.batch=3")
    shown = capsys.readouterr()
    assert code == 0, shown.err
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["target"]["exact"]
    assert [entry["lossless"]["verdict"] for entry in summary["methods"]] == ["baseline", "yes"]
    assert "bfloat16, exact" in shown.out


def test_backends_that_cannot_be_exact(specdec_run, capsys):
    for given, told in (
        (("backend=sdpa", "backend.exact=true"), "exact=True needs an attention backend"),
        (("backend.exact=1",), "backend.exact is 1; expected true or false"),
        (("backend.exact=true", "backend.compile=true"), "cannot be combined with compile"),
        (("backend.compile=1",), "backend.compile is 1; expected true or false"),
    ):
        assert specdec_run("drafter=ngram", *given)[0] == 1
        assert told in capsys.readouterr().err


def test_compiled_engines_are_warmed_up_before_anything_is_measured(specdec_run, monkeypatch):
    """Which takes minutes; here they only say that they were."""
    made = []

    class Recorded(workbench.Engine):
        def __init__(self, *args, compile, **settings):
            super().__init__(*args, **settings)
            made.append([compile])

        def warmup(self, *slots):
            made[-1].append(slots)

    monkeypatch.setattr(workbench, "Engine", Recorded)
    assert specdec_run("drafter=ngram", "data.limit=1")[0] == 0
    assert made == [[False], [False]]
    made.clear()
    assert specdec_run("drafter=none", "data.limit=1", "backend.compile=true", "hydra.run.dir=other")[0] == 0
    assert made[-1] == [True, (1,)]


@pytest.mark.skipif(not SPEC_BENCH.exists(), reason="Spec-Bench's questions are not shipped")
def test_spec_bench_runs(specdec_run):
    code, directory = specdec_run(
        "data=spec_bench", f"data.path={SPEC_BENCH}", "measure.max_new_tokens=2", "drafter=none", "data.per_category=2"
    )
    assert code == 0
    assert json.loads((directory / "summary.json").read_text())["questions"] == 26


def test_synthetic_drafts_are_right_by_the_baselines_text_and_shown_as_synthetic(specdec_run, capsys):
    """Sampled, and without a model that could decode them: what is right was handed in."""
    drafter = "{_target_: specdec.drafters.synthetic.Synthetic, acceptance: 1.0, references: []}"
    methods = f"+methods.perfect.drafter={drafter}"
    code, directory = specdec_run(methods, "drafter=none", "sampling=temperature", "measure.max_new_tokens=12")
    assert code == 0, capsys.readouterr().err
    _, entry = json.loads((directory / "summary.json").read_text())["methods"]
    assert entry["name"] == "perfect_synthetic"
    assert entry["speedup"]["label"] == "synthetic"
    assert entry["metrics"]["mean_accepted_length_pooled"] > 3
    assert entry["lossless"]["verdict"].startswith("yes")
    assert "(synthetic," in capsys.readouterr().out
