"""The roofline: formulas against cases computed by hand, what drafters read, machine files, and the plot."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from specdec import loading
from specdec.engine import Engine
from specdec.experiments.machine import device_name
from specdec.experiments.machine_file import Machine, read_machine
from specdec.experiments.report.roofline_plot import roofline as draw
from specdec.experiments.report.shown import Shown
from specdec.experiments.report.svg import LogAxis
from specdec.experiments.roofline import Roofline, attention_flops, contexts, rows_of
from specdec.experiments.weight_reads import Reads, drafter_reads, weights_of
from specdec.metrics import DecodingStats, TargetCost
from specdec.request_stats import RequestStats
from specdec.sampling import SamplingParams

from ..models import make_model

CPU = torch.device("cpu")


def stats(*requests: RequestStats, forwards: int, verify: float, draft: float = 0.0) -> DecodingStats:
    found = DecodingStats(list(requests), forwards=forwards)
    found.phases["verify"], found.phases["draft"] = verify, draft
    return found


ONE = RequestStats(prompt_tokens=10, accept_lengths=[3, 1], nodes=8, riders=2)
TWO = RequestStats(prompt_tokens=20, accept_lengths=[2], nodes=4)
HELD = Roofline(TargetCost(parameters=100, weight_bytes=200, kv_bytes_per_token=4), 6, bandwidth=1000.0, flops=5000.0)


def test_rows_and_contexts():
    assert rows_of(ONE) == (8 + 2 + 2) / 2, "nodes, two roots, riders"
    assert contexts(ONE) == [10, 13]
    assert contexts(TWO) == [20]


def test_a_verify_step_by_hand():
    """Two sequences in two forwards: both in the first, one in the second."""
    step = HELD.steps("any", stats(ONE, TWO, forwards=2, verify=0.5))["verify_step"]
    moved = 2 * 200 + 4 * (10 + 13 + 20)
    flops = 6 * (2 * 100 + 10 * 6) + 6 * (2 * 100 + 13 * 6) + 5 * (2 * 100 + 20 * 6)
    assert step == pytest.approx(
        {
            "bytes": moved / 2,
            "flops": flops / 2,
            "seconds": 0.25,
            "intensity": flops / moved,
            "bandwidth_share": moved / 0.5 / 1000,
            "flops_share": flops / 0.5 / 5000,
        }
    )


def test_a_draft_step_by_hand():
    """Weights are read once for all sequences; operations are every sequence's own."""
    held = Roofline(HELD.cost, 6, 1000.0, 5000.0, {"draft": Reads(bytes=300.0, flops=70.0)})
    found = held.steps("draft", stats(ONE, TWO, forwards=2, verify=0.5, draft=0.2))
    assert found["draft_step"] == pytest.approx(
        {
            "bytes": 300.0,
            "flops": 70.0 * 3 / 2,
            "seconds": 0.1,
            "intensity": 210 / 600,
            "bandwidth_share": 600 / 0.2 / 1000,
            "flops_share": 210 / 0.2 / 5000,
        }
    )
    assert held.steps("ngram", stats(ONE, forwards=2, verify=0.5))["draft_step"] is None


def test_nothing_served_has_no_numbers():
    step = HELD.steps("any", stats(forwards=0, verify=0.0))["verify_step"]
    assert step is not None
    assert all(math.isnan(value) for value in step.values())


@pytest.mark.parametrize(("architecture", "expected"), [("llama", 2), ("deepseek_v3", 2)])
def test_attention_counts_query_heads_and_both_widths(architecture: str, expected: int) -> None:
    engine = Engine(make_model(architecture), "none", None, "coupled")
    config, cache = engine.target.model.config, engine.target.cache
    engine.target.open(1, 8)
    by_hand = 0
    for keys, values in zip(cache.keys, cache.values, strict=True):
        by_hand += expected * config.num_attention_heads * (keys.shape[-1] + values.shape[-1])
    assert attention_flops(engine) == by_hand
    if architecture == "llama":
        width = config.hidden_size // config.num_attention_heads
        assert by_hand == config.num_hidden_layers * 4 * config.num_attention_heads * width


# --- what drafters read


def reads(target: Any, drafter: Any, tokens: int = 6, tree: Any = None) -> Reads | None:
    return drafter_reads(Engine(target, drafter, tree, "coupled"), [5, 6, 7, 5, 6], tokens, SamplingParams())


def matrices(model: Any) -> int:
    """Numbers in a model's matrices that every row is multiplied with: its head and not its embedding's table."""
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return sum(p.numel() for p in model.parameters() if p.dim() == 2) - (
        0 if tied else model.get_input_embeddings().weight.numel()
    )


@pytest.mark.parametrize("drafter", ["none", "ngram", "suffix"])
def test_what_has_no_weights_reads_none(drafter: str) -> None:
    assert reads(make_model(), drafter) is None


@pytest.mark.parametrize("length", [1, 3])
def test_a_draft_model_is_read_once_a_level(length: int) -> None:
    """A chain of 3: 3 passes of a row each, in the only step there is."""
    target = make_model(seed=0, dtype=torch.float32)
    draft = make_model(seed=1, num_hidden_layers=1, dtype=torch.float32)
    tree = {"_target_": "specdec.tree.static.chain", "length": length}
    found = reads(target, draft, tokens=2, tree=tree)
    assert found is not None
    assert found.bytes == length * matrices(draft) * 4
    assert found.flops == length * matrices(draft) * 2


@pytest.mark.parametrize("attention", ["packed", "sdpa", "naive"])
def test_layers_of_the_target_that_draft_are_read(attention: str) -> None:
    """Of three layers the first drafts, before the head; a level is a pass, and so is each later token's."""
    target = make_model(num_hidden_layers=3)
    spec: dict[str, Any] = {"_target_": "specdec.drafters.early_exit.EarlyExit", "skip": [1, 2]}
    spec["tree"] = {"_target_": "specdec.tree.static.chain", "length": 2}
    found = drafter_reads(Engine(target, spec, None, "coupled", backend=attention), [5, 6, 7], 2, SamplingParams())
    layer = sum(p.numel() for p in target.model.layers[0].parameters() if p.dim() == 2)
    weights = layer + target.lm_head.weight.numel()
    assert found == Reads(bytes=2 * weights * target.dtype.itemsize, flops=2 * weights * 2)


def test_a_drafter_of_a_plug_in_is_looked_into() -> None:
    """Its class is not of specdec, and holds its weights in an object of its own package."""

    class Inner:
        def __init__(self) -> None:
            self.weights = [torch.ones(3, 4), {"more": torch.ones(2)}]

    class Mine:
        def __init__(self) -> None:
            self.inner, self.other = Inner(), Path()

    assert [w.numel() for w in weights_of(Mine())] == [12, 2]


def test_heads_are_read_with_the_targets_head() -> None:
    """Medusa's of the shipped target: all their matrices once, for a row each."""
    model = loading.load_model("tiny")
    engine = Engine(model, "medusa", None, "coupled")
    weights = sum(p.numel() for p in engine.drafter.head.parameters() if p.dim() > 1)  # type: ignore[attr-defined]
    assert reads(model, "medusa") == Reads(bytes=2 * weights, flops=2 * weights)


# --- machine files


def content(**changes: Any) -> dict[str, Any]:
    product = {"dtype": "float32", "rows": 1, "best": 10}
    return {
        "device": "cpu",
        "name": device_name(CPU),
        "threads": torch.get_num_threads(),
        "bandwidth": {"read": {"best": 7}, "copy": {"best": 5}},
        "products": [product, {**product, "best": 30}, {**product, "dtype": "bfloat16", "best": 90}],
    } | changes


def test_the_best_of_every_kind_is_the_roof(tmp_path: Path) -> None:
    file = tmp_path / "m.json"
    file.write_text(json.dumps(content()))
    machine = read_machine(file)
    assert machine.bandwidth == 7
    assert machine.flops == {"float32": 30, "bfloat16": 90}
    machine.check(CPU, "bfloat16")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "another"}, "machine=measure"),
        ({"device": "cuda"}, "machine=measure"),
        ({"threads": 999}, "measure.threads=999"),
        ({"products": [{"dtype": "float64", "best": 1}]}, "dtype=bfloat16"),
    ],
)
def test_another_machine_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Machine.parse(content(**changes), "m.json").check(CPU, "bfloat16")


@pytest.mark.parametrize("text", ["{", "[]", '{"device": "cpu"}', '{"products": [1], "bandwidth": {}}'])
def test_what_is_no_machine_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "m.json"
    file.write_text(text)
    with pytest.raises(ValueError, match="specdec bench machine"):
        read_machine(file)
    with pytest.raises(ValueError, match="cannot be read"):
        read_machine(tmp_path / "nowhere.json")


def test_a_run_without_a_machine_says_how_to_get_one(specdec_run, capsys, tmp_path):
    code, folder = specdec_run("drafter=ngram", "data.limit=1")
    assert code == 0, capsys.readouterr().err
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["environment"]["machine"] is None
    assert "verify_step" not in summary["methods"][0]["metrics"]
    assert "specdec bench machine" in (folder / "report.html").read_text()


def test_a_mistake_in_machine_is_told_before_anything_is_loaded(specdec_run, capsys, tmp_path):
    code, folder = specdec_run("drafter=ngram", f"machine={tmp_path / 'nowhere.json'}")
    assert code == 1
    assert "nowhere.json cannot be read" in capsys.readouterr().err
    assert not folder.exists()


# --- the plot


def test_a_logarithmic_axis() -> None:
    axis = LogAxis(1.0, 100.0, 0.0, 200.0)
    assert [axis(value) for value in (1.0, 10.0, 100.0)] == pytest.approx([0.0, 100.0, 200.0])
    assert axis.ticks() == [1.0, 10.0, 100.0]
    assert LogAxis(0.5, 5e12, 0, 1).ticks() == [1.0, 1e3, 1e6, 1e9, 1e12]


def method(name: str, **steps: Any) -> Shown:
    entry = {"name": name, "cell": None, "metrics": steps, "speedup": None, "baseline": None}
    return Shown(name=name, class_="m0", marker=1, entry=entry, tpots=[], step_seconds=None)


def test_the_plot_places_steps_by_what_they_compute() -> None:
    step = {"intensity": 4.0, "flops": 8e9, "seconds": 2.0, "bytes": 2e9}
    machine = {"bandwidth": 2e10, "flops": {"float32": 8e10, "bfloat16": 2e11}}
    drawn = draw([method("a", verify_step=step, draft_step=None)], machine, "bfloat16")
    assert drawn is not None
    assert "a verify step: 4 FLOP per byte, 4\u00a0GFLOP/s" in drawn
    assert "bfloat16 200" in drawn
    assert "float32 80" in drawn
    assert draw([method("a", verify_step=None, draft_step=None)], machine, "bfloat16") is None
    assert draw([method("a", verify_step=step)], None, "bfloat16") is None
    assert draw([method("a", verify_step=step)], machine, "float16") is None, "no roof in this dtype"
