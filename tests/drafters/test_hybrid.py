"""Several drafters as one: whose nodes are proposed, who learns what, and the text."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import specdec
from specdec import registry
from specdec.drafters.draft_model import DraftModel
from specdec.drafters.hybrid import Hybrid, count_right
from specdec.drafters.ngram import NGram
from specdec.drafters.suffix import Suffix
from specdec.drafters.synthetic import Synthetic
from specdec.experiments.methods import make_methods
from specdec.sampling import SamplingParams
from specdec.tree.static import chain
from specdec.tree.token_tree import TokenTree

from ..fakes import Harness
from ..models import make_model, own_texts, ragged_batch

PROMPT = [1, 2, 3, 4, 5, 6, 1, 2]
REFERENCE = [*PROMPT, 3, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]


def first_tree(hybrid: Hybrid, prompt: list[int] = PROMPT, root: int = 3) -> list[list[int]]:
    harness = Harness(hybrid, 2, 90, SamplingParams(), True)
    harness.enter([1], [prompt])
    harness.roots[1] = root
    tree = harness.step()
    assert tree.sizes.tolist()[0] == 0
    return tree.paths(1)


def sure(length: int = 4) -> Synthetic:
    return Synthetic(1.0, tree=chain(length), references=[REFERENCE])


def test_merged_trees_share_nodes_and_the_first_has_its_nodes_first() -> None:
    ngram = NGram(length=4, continuations=1, max_nodes=5)
    both = [[3, 4, 5, 6, 1], [3, 7, 7, 7, 7]]
    assert first_tree(Hybrid([ngram, sure()])) == both
    assert sorted(first_tree(Hybrid([sure(), ngram]))) == both
    assert first_tree(Hybrid([ngram, sure()], max_nodes=6)) == [[3, 4, 5, 6, 1], [3, 7]]
    assert first_tree(Hybrid([ngram, ngram])) == both[:1]
    assert Hybrid([ngram, sure()]).needs.max_nodes == 9


def test_the_first_tree_that_is_large_enough() -> None:
    suffix = Suffix(max_nodes=9, nodes_per_match=1, remember=0)  # a match of 3 tokens: 3 nodes
    assert first_tree(Hybrid([suffix, sure()], "fallback", least_nodes=4)) == [[3, 4, 5, 6]]
    assert first_tree(Hybrid([suffix, sure()], "fallback", least_nodes=5)) == [[3, 7, 7, 7, 7]]
    assert first_tree(Hybrid([suffix], "fallback", least_nodes=9)) == [[3, 4, 5, 6]]
    assert first_tree(Hybrid([suffix, sure()], "fallback", max_nodes=3)) == [[3, 4, 5]]
    assert Hybrid([suffix, sure()], "fallback").needs.max_nodes == 9


def test_the_part_that_has_been_right_lately_in_every_slot_for_itself() -> None:
    """Slot 0's text is what the first part knows, slot 1's what the second does; requests begin at nought."""
    texts = [[i, *([i + 3] * 60)] for i in (0, 1)]
    wrong = [[i, *([i + 5] * 60)] for i in (0, 1)]
    first, second = (Synthetic(1.0, references=refs) for refs in ([texts[0], wrong[1]], [wrong[0], texts[1]]))
    model_text = {0: texts[0], 1: texts[1]}
    hybrid = Hybrid([first, second], "acceptance")
    harness = Harness(hybrid, 2, 90, SamplingParams(), True)
    decide = {}

    def follow(tree: TokenTree, slot: int) -> tuple[list[int], int]:
        known, place = model_text[slot], len(harness.texts[slot])
        path = [0]
        for token in known[place + 1 :]:
            child = int(tree.child(torch.full((2,), path[-1]), torch.full((2,), token))[slot])
            if child < 0:
                break
            path.append(child)
        decide[slot] = len(path) - 1
        return path, known[place + len(path)]

    harness._decide = follow  # type: ignore[method-assign]
    harness.enter([0, 1], [[0], [1]])
    harness.roots[:] = torch.tensor([3, 4])
    lengths = []
    for _ in range(5):
        harness.step()
        lengths.append(dict(decide))
    assert [step[0] for step in lengths] == [4] * 5
    assert lengths[0][1] == 0  # the first part goes first
    assert [step[1] for step in lengths[1:]] == [4] * 4
    assert (harness.state.scores.argmax(1) == torch.tensor([0, 1])).all()
    harness.leave(1)
    harness.enter([1], [[1]])
    assert harness.state.scores[1].tolist() == [0, 0]
    assert harness.state.scores[0, 0] > 2


def test_tokens_that_a_tree_had_right_in_a_row() -> None:
    tree = TokenTree.from_paths([5, 5, -1, 5], [[[1, 2, 3], [4]], [[1, 2, 3]], [], [[9, 2]]])
    emitted = torch.tensor([[1, 2, 8], [1, 2, 3], [0, 0, 0], [1, 2, 3]])
    counts = torch.tensor([3, 2, 0, 3])
    assert count_right(tree, torch.tensor([5, 5, 0, 5]), emitted, counts).tolist() == [2, 2, 0, 0]


@pytest.mark.parametrize("mode", ["merge", "fallback", "acceptance"])
@pytest.mark.parametrize("acceptance", ["coupled", "rejection"])
def test_text_is_the_models_own(mode: str, acceptance: str) -> None:
    model = make_model(dtype=torch.float64)
    ids, mask, _ = ragged_batch((9, 4, 1))
    names: Any = ["suffix", "ngram", "recycling"]
    drafter = registry.build("drafter", "hybrid", drafters=names, mode=mode)
    out = specdec.generate(model, ids, mask, drafter=drafter, acceptance=acceptance, max_new_tokens=30, eos_token_id=[])
    assert out.sequences[:, ids.shape[1] :].tolist() == own_texts((9, 4, 1), 30)
    assert out.stats.mean_accepted_length_pooled > 1.1


def test_parts_in_a_yaml() -> None:
    made = registry.build("drafter", "hybrid", drafters=["ngram", {"_target_": "specdec.drafters.none.NoDrafter"}])
    assert [type(part).__name__ for part in made.drafters] == ["NGram", "NoDrafter"]
    with pytest.raises(ValueError, match=r"unknown drafter 'ngrm'\. Did you mean 'ngram'"):
        registry.check_spec("drafter", {"_target_": "specdec.drafters.hybrid.Hybrid", "drafters": ["ngrm"]})
    with pytest.raises(ValueError, match="unknown setting"):
        registry.build("drafter", "hybrid", drafters=[{"_target_": "specdec.drafters.ngram.NGram", "lenght": 3}])
    methods = make_methods(
        {
            "acceptance": "coupled",
            "methods": {
                "both": {"drafter": {**registry.read_yaml("drafter", "hybrid"), "drafters": ["suffix", "synthetic"]}}
            },
        },
        (),
    )
    assert [m.name for m in methods] == ["none", "both_synthetic"]


def test_parts_are_looked_over_like_drafters() -> None:
    model = make_model()
    small = Suffix()
    small.vocab_size = 7  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="a vocabulary of 7 tokens, the target of 80"):
        specdec.generate(model, torch.tensor([[1, 2]]), drafter=Hybrid([NGram(), small]), max_new_tokens=2)


def test_refuses() -> None:
    with pytest.raises(ValueError, match="DraftModel cannot be a part of hybrid"):
        Hybrid([NGram(), DraftModel(make_model())])
    with pytest.raises(ValueError, match=r"hybrid\.mode is 'both'; expected one of: merge, fallback, acceptance"):
        Hybrid([NGram()], "both")
    wrong: list[dict[str, Any]] = [{"drafters": []}, {"least_nodes": 0}, {"decay": 1.0}, {"max_nodes": 1}]
    for settings in wrong:
        with pytest.raises(ValueError, match="hybrid needs drafters, least_nodes >= 1"):
            Hybrid(**{"drafters": [NGram()], **settings})
