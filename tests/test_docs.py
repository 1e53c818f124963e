"""What the documentation shows is what works."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import specdec

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "cpu"
EXAMPLE = ROOT / "docs" / "examples" / "bigram.py"


def test_readme_shows_the_example_drafter_as_it_is() -> None:
    source = EXAMPLE.read_text()
    assert len(source.splitlines()) < 60
    assert source in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("batch", [1, 3])
def test_the_example_drafter_is_lossless_and_drafts(batch: int) -> None:
    spec = importlib.util.spec_from_file_location("bigram", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.2, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    prompts = torch.randint(0, 40, (batch, 7))
    plain = specdec.generate(model, prompts, drafter="none", max_new_tokens=60)
    drafter = module.Bigram()
    drafter.start(drafter.open(1, 9, torch.device("cpu")), [0], [[]], None)  # in flight a prompt may be empty
    drafted = specdec.generate(model, prompts, drafter=drafter, max_new_tokens=60)
    assert torch.equal(plain.sequences, drafted.sequences)
    assert drafted.stats.mean_accepted_length_pooled > 1.1


def test_what_a_run_costs_beside_decoding_is_what_was_measured() -> None:
    result = json.loads((RESULTS / "overhead.json").read_text())
    found, report = result["overhead"], result["report"]
    assert all(part["reached"] for part in (found["jsonl"], found["wandb"], report))
    shares = {name: f"{100 * found[name]['bookkeeping']['median']:.1f} %" for name in ("jsonl", "wandb")}
    start, end = (found["wandb"]["once_seconds"][part]["median"] for part in ("start", "end"))
    page = " ".join((ROOT / "experiments" / "README.md").read_text(encoding="utf-8").split())
    assert f"take {shares['jsonl']} of the CPU time of its requests with `tracker=jsonl`" in page
    assert f"and {shares['wandb']} with wandb, which took {start:.1f} s more to start and {end:.1f} s to end" in page
    assert f"a run of {report['steps']:,} steps takes {report['cpu_seconds']:.1f} s".replace(",", " ") in page
    assert f"{report['seconds']:.1f} s in all, and {report['peak_memory'] / 1e6:.0f} MB" in page
    assert f"the page has {report['page_bytes'] / 1e3:.0f} kB" in page


def test_the_table_of_drafters_is_what_was_measured() -> None:
    greedy, sampled, together = (
        {method["name"]: method for method in json.loads((RESULTS / f"{name}.json").read_text())["methods"]}
        for name in ("drafters", "drafters_sampled", "drafters_batch8")
    )
    page = (ROOT / "docs" / "drafters.md").read_text(encoding="utf-8")
    for name in greedy.keys() - {"none", "none_again"}:
        cells = []
        for method in (greedy[name], sampled[name], together[name]):
            assert method["lossless"].startswith("yes")
            found = method["speedup"]
            accepted = f"{method['mean_accepted_length_pooled']:.2f}"
            cells += [accepted, f"{found['ratio']:.2f}x [{found['low']:.2f}, {found['high']:.2f}]"]
        assert f"| `{name}` | {' | '.join(cells)} |" in page


def test_the_table_of_serving_is_what_was_measured() -> None:
    turns = json.loads((RESULTS / "serving.json").read_text())["by_turns"]
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    for row in turns["ratios"]:
        assert f"| {row['way']} | {row['over']} | {row['ratio']:.2f}x [{row['low']:.2f}, {row['high']:.2f}] |" in page
    ours = [found for name, found in turns["texts"].items() if name not in ("transformers", "vLLM")]
    assert all(found["different"] == 0 for found in ours)


def test_the_table_of_speculation_under_load_is_what_was_measured() -> None:
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    cells = json.loads((RESULTS / "load.json").read_text())["load"]["cells"]
    assert all(cell["lossless"].startswith("yes") for cell in cells)
    by_name = {cell["name"]: cell for cell in cells}
    for cell in cells:
        if cell["speculation"] == "adaptive":
            on, better = by_name[cell["name"].replace("adaptive", "on")], cell["over_better"]
            found = (on["over_off"], cell["over_off"], better)
            ratios = (f"{x['ratio']:.2f}x [{x['low']:.2f}, {x['high']:.2f}]" for x in found)
            assert f"| {cell['level']} | {' | '.join(ratios)} | {better['other']} |" in page


def test_the_table_of_other_engines_is_what_was_measured() -> None:
    page = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    for pair in json.loads((RESULTS / "peers.json").read_text())["pairs"]:
        found, accepted = pair["tokens_per_second_ratio"], "{:.2f}, {:.2f}".format(*pair["mean_accepted_length"])
        ratio = f"{found['ratio']:.2f}x [{found['low']:.2f}, {found['high']:.2f}]"
        assert pair["lossless"].startswith("yes")
        assert f"| `{pair['drafter']}` | {pair['over']} | {ratio} | {accepted} |" in page


def test_what_a_second_worker_is_worth_is_what_was_measured() -> None:
    found = json.loads((RESULTS / "sweep.json").read_text())["ratio"]
    said = f"took {found['median']:.2f} times less time than on one\n[{found['least']:.2f}, {found['most']:.2f}]"
    assert said in (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
