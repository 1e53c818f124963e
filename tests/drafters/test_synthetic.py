"""Synthetic drafts: right as often as they are told, nowhere shown as a method."""

from __future__ import annotations

import pytest
import torch

import specdec
from specdec.drafters.synthetic import Synthetic, greedy
from specdec.experiments.methods import make_methods
from specdec.sampling import SamplingParams
from specdec.tree.best_first import BestFirst
from specdec.tree.static import StaticTree, chain
from specdec.tree.token_tree import TokenTree

from ..models import make_model, plain_text, ragged_batch

VOCAB = 80
TREE = StaticTree([[0], [1], [0, 0], [0, 1], [0, 0, 0]])


@pytest.fixture(scope="module")
def model():
    return make_model(dtype=torch.float64)


def stats_of(model, drafter, sampling=None, lengths=(9, 4, 1, 7), new_tokens=25):
    ids, mask, prompts = ragged_batch(lengths)
    out = specdec.generate(
        model, ids, mask, drafter=drafter, sampling=sampling, max_new_tokens=new_tokens, eos_token_id=[]
    )
    return out.sequences[:, ids.shape[1] :].tolist(), out.stats, prompts


def test_greedy_references_are_the_models_own_text(model):
    prompts = [[5, 6, 7], [9], [3] * 8]
    assert greedy(model, prompts, 20) == [p + plain_text(model, p, 20 - len(p)) for p in prompts]


def walk(drafter, reference, prompt=3):
    """The steps of decoding a chain drafter's reference: how many drafts are right in each."""
    text = drafter.read([reference[:prompt]], len(reference))[0]
    drafter.append(text, [reference[prompt]])
    lengths = []
    while text.length + drafter.needs.max_nodes < len(reference):
        tokens, parents = drafter.draft(text, VOCAB)
        assert parents == list(range(-1, len(tokens) - 1))
        following = reference[text.length : text.length + len(tokens)]
        right = next(
            (i for i, (a, b) in enumerate(zip(tokens[1:], following, strict=False)) if a != b), len(tokens) - 1
        )
        drafter.append(text, following[: right + 1])
        lengths.append(right)
    return lengths


def test_every_depth_is_accepted_as_often_as_told():
    """Within four standard deviations of a binomial's share."""
    reference = torch.randint(0, VOCAB, (4000,)).tolist()
    lengths = walk(Synthetic([0.8, 0.5], tree=chain(3), references=[reference]), reference)
    for depth, wanted in enumerate((0.8, 0.5, 0.5)):
        offered = sum(n >= depth for n in lengths)
        share = sum(n > depth for n in lengths) / offered
        assert offered > 400
        assert abs(share - wanted) < 4 * (wanted * (1 - wanted) / offered) ** 0.5


def test_draws_depend_on_seed_prompt_and_place_alone():
    one, other = torch.randint(0, VOCAB, (2, 200)).tolist()
    drafter = Synthetic(0.6, references=[one, other])
    alone = walk(drafter, one)
    assert walk(drafter, other) != alone
    assert walk(drafter, one) == alone == walk(Synthetic(0.6, references=[one]), one)
    assert walk(Synthetic(0.6, references=[one], seed=1), one) != alone


@pytest.mark.parametrize("acceptance", [0.0, 1.0])
def test_never_and_always(model, acceptance):
    texts, stats, prompts = stats_of(model, Synthetic(acceptance, tree=TREE, model=model))
    assert texts == [plain_text(model, p, 25) for p in prompts]
    assert stats.mean_accepted_length_pooled == (1 if acceptance == 0 else 4)


def test_references_that_are_handed_in_serve_sampled_texts(model):
    sampling = SamplingParams(temperature=1.0, seed=3)
    texts, _, prompts = stats_of(model, "none", sampling)
    references = [[1, 2, 3], *(p + t for p, t in zip(prompts, texts, strict=True))]
    same, stats, _ = stats_of(model, Synthetic(1.0, references=references), sampling)
    assert same == texts
    assert stats.mean_accepted_length_pooled > 4.5
    assert stats_of(model, Synthetic(1.0, model=model), sampling)[0] == texts  # a greedy reference is soon left


def test_a_text_without_a_reference_is_refused(model):
    with pytest.raises(ValueError, match="none of the 1 references of drafter synthetic begins with the prompt"):
        stats_of(model, Synthetic(references=[[1, 2]]))


def test_the_last_reference_of_a_prompt_counts_and_the_model_stands_in(model):
    drafter = Synthetic(model=model, references=[[1, 2, 3], [4, 5], [1, 2, 9]])
    known, decoded = drafter.read([[1, 2], [7]], 6)
    assert known.reference == [1, 2, 9]
    assert decoded.reference == [7, *plain_text(model, [7], 5)]


def test_a_text_that_leaves_its_reference_is_drafted_wrongly_in_full_trees():
    drafter = Synthetic(1.0, tree=TREE, references=[[5] * 50])
    text = drafter.read([[5, 5]], 50)[0]
    drafter.append(text, [5])
    assert TokenTree.from_lists([drafter.draft(text, 6)]).paths(0) == [[5, 1], [5, 5, 1], [5, 5, 5, 5]]
    drafter.append(text, [5, 4, 5])
    tokens, parents = drafter.draft(text, 6)
    assert tokens[0] == 5
    assert 5 not in tokens[1:]
    assert len(tokens) == len(parents) == 6


def test_references_that_the_model_decodes_are_kept_and_bounded(model, monkeypatch):
    monkeypatch.setattr("specdec.drafters.synthetic.MOST_KNOWN", 3)
    drafter = Synthetic(model=model)
    first = drafter.read([[1, 2], [3]], 9)
    decoded = []
    monkeypatch.setattr("specdec.drafters.synthetic.greedy", lambda m, p, n: decoded.append(p) or greedy(m, p, n))
    assert [t.reference for t in drafter.read([[3], [1, 2]], 9)] == [t.reference for t in reversed(first)]
    assert decoded == []
    assert len(drafter.read([[3]], 12)[0].reference) == 12
    drafter.read([[4], [5]], 9)
    assert len(drafter._known) <= 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"acceptance": 1.2}, "synthetic.acceptance is 1.2; expected numbers from 0 to 1"),
        ({"acceptance": []}, "synthetic.acceptance is "),
        ({"tree": BestFirst()}, "give tree=chain or tree=static"),
        ({"references": None}, "needs the target as `model`, or `references`"),
    ],
)
def test_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        Synthetic(**{"references": [[1, 2]], **settings})


def test_its_methods_are_called_synthetic():
    """In every table, figure and file that shows the method, for its name is what they show."""
    raw = {
        "acceptance": "coupled",
        "methods": {"perfect": {"drafter": "synthetic"}, "ngram": {"drafter": "ngram"}},
        "drafter": "synthetic",
    }
    methods = {m.name: m.synthetic for m in make_methods(raw, ())}
    assert methods == {"none": False, "perfect_synthetic": True, "ngram": False, "synthetic": True}
