"""What the documentation shows is what works."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import specdec

ROOT = Path(__file__).parent.parent
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
    drafted = specdec.generate(model, prompts, drafter=module.Bigram(), max_new_tokens=60)
    assert torch.equal(plain.sequences, drafted.sequences)
    assert drafted.stats.mean_accepted_length_pooled > 1.1


def test_the_table_of_drafters_is_what_was_measured() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "cpu" / "drafters.json").read_text(encoding="utf-8"))
    methods = {method["name"]: method for method in measured["methods"]}
    assert all(method["lossless"].startswith(("baseline", "yes")) for method in methods.values())
    page = (ROOT / "docs" / "drafters.md").read_text(encoding="utf-8")
    for name in {method.removesuffix("_t1") for method in methods} - {"none_t0", "none"}:
        cells = []
        for method in (methods[name], methods[f"{name}_t1"]):
            found = method["speedup"]
            interval = f"[{found['low']:.2f}, {found['high']:.2f}]"
            cells += [f"{method['mean_accepted_length_pooled']:.2f}", f"{found['ratio']:.2f}x {interval}"]
        assert f"| `{name}` | {' | '.join(cells)} |" in page
