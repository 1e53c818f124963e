"""docs/trees.md: its table has every policy, its picture is the tree, and its example works."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import specdec
from specdec import registry
from specdec.core import TreePolicy
from specdec.drafters.draft_model import DraftModel
from specdec.tree.sequoia import Table, read_chances

from ..models import make_model, plain_text

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "trees.md").read_text(encoding="utf-8")


def test_the_table_has_every_policy() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (yes|no) \|.*\| `specdec run .*tree=\1.*` \|$", PAGE, re.MULTILINE))
    assert sorted(rows) == registry.names("tree")
    for name, fixed in rows.items():
        assert registry.build("tree", name).fixed_shape == (fixed == "yes")


def test_the_picture_is_the_tree() -> None:
    tree = registry.build("tree", "sequoia")
    picture = PAGE.split("```")[1]
    assert {tuple(map(int, name)) for name in re.findall(r"(?<=\s)\d+(?=\s)", re.sub(r"P \+ .*", "", picture))} == set(
        tree.paths
    )
    chances = read_chances(ROOT / "benchmarks" / "results" / "cpu" / "curve.json")
    tokens = Table(chances, tree.max_nodes, tree.depth).tokens(tree.max_nodes)
    assert f"{tree.max_nodes} nodes, {tree.depth} levels, {tokens:.2f} expected tokens a step" in PAGE


@pytest.mark.parametrize("acceptance", ["coupled", "rejection"])
def test_the_example_is_a_policy(acceptance: str) -> None:
    names: dict[str, Any] = {"torch": torch}
    exec(PAGE.split("```python")[1].split("```")[0], names)
    policy = names["Narrowing"]()
    assert isinstance(policy, TreePolicy)
    model = make_model(dtype=torch.float64)
    drafter = DraftModel(model, policy)
    out = specdec.generate(
        model, torch.tensor([[5, 6, 7]]), drafter=drafter, acceptance=acceptance, max_new_tokens=20, eos_token_id=[]
    )
    assert out.sequences[0, 3:].tolist() == plain_text(model, [5, 6, 7], 20)
    assert out.stats.accept_lengths[0][0] == policy.depth + 1
    assert out.stats.requests[0].nodes == (policy.max_nodes - 1) * out.stats.steps


def test_the_table_of_results_is_what_was_measured() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "cpu" / "adaptive.json").read_text(encoding="utf-8"))
    for method in measured["methods"]:
        assert method["lossless"].startswith(("baseline", "yes"))
        if found := method["speedup"]:
            interval = f"[{found['low']:.2f}, {found['high']:.2f}]"
            cells = f"| {method['mean_accepted_length_pooled']:.2f} | {found['ratio']:.2f}x {interval} |"
            assert cells in PAGE
