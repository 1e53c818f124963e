"""A head is looked over before anything is written: that it is one, that it fits, that sequences are long enough."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from specdec.drafters.medusa_head import MedusaHead
from specdec.experiments.training.heads.config import DataConfig, HeadTrainingConfig, check_settings
from specdec.experiments.training.heads.make import make_head
from specdec.target import Target

from ...models import make_model
from . import simple

MEDUSA = "specdec.drafters.medusa_head.MedusaHead"
SIMPLE = f"{simple.__name__}.SimpleHead"
DATA = DataConfig("cache", packages=["stdlib"], prompt_tokens=6, new_tokens=10)


@pytest.fixture(scope="module")
def target() -> Target:
    return Target(make_model("llama", num_hidden_layers=1))


@pytest.fixture(autouse=True)
def _can_be_found(monkeypatch):
    monkeypatch.setattr("specdec.experiments.training.heads.make.registry.find_target", lambda name, _: heads()[name])


def heads() -> dict[str, object]:
    return {SIMPLE: simple.SimpleHead, MEDUSA: MedusaHead, "none.Head": object}


def config(head=None, **settings) -> HeadTrainingConfig:
    return HeadTrainingConfig(
        "out", "simple", **{"data": DATA, "length": 16, "head": head or {"_target_": SIMPLE}, **settings}
    )


def test_the_seed_decides_the_first_weights(target):
    one, other, third = (make_head(config(seed=seed), target, ())[0] for seed in (0, 0, 1))
    assert torch.equal(one.layers[0].weight, other.layers[0].weight)
    assert not torch.equal(one.layers[0].weight, third.layers[0].weight)
    assert one.depth == 3


@pytest.mark.parametrize(
    ("head", "told"),
    [
        ({"_target_": SIMPLE, "deph": 3}, "Did you mean 'depth'?"),
        ({"_target_": "none.Head"}, "has no `new`"),
        ({"depth": 3}, "has no _target_"),
        ({"_target_": SIMPLE, "vocabulary": 79}, r"shape \[1, 1, 3, 79\] .* needs \[1, 1, 3, 80\]"),
        ({"_target_": SIMPLE, "vocabulary": 60}, "vocabulary of 60 tokens, the target of 80"),
        ({"_target_": SIMPLE, "depth": 10}, "data.new_tokens is 10; .* give at least 11"),
    ],
)
def test_a_head_that_is_none_or_does_not_fit(head, told, target):
    with pytest.raises(ValueError, match=told):
        make_head(config(head), target, ())


def test_training_begins_from_another_head(target, tmp_path):
    medusa = {"_target_": MEDUSA, "heads": 3}
    first = make_head(config(medusa, seed=1), target, ())[0]
    first.save(tmp_path)
    further = make_head(config(medusa, start=str(tmp_path)), target, ())[0]
    assert first.state_dict().keys() == further.state_dict().keys()
    assert all(torch.equal(weight, further.state_dict()[key]) for key, weight in first.state_dict().items())
    with pytest.raises(ValueError, match=r"training.start: .* of shape None; training.head needs \["):
        make_head(config({**medusa, "heads": 4}, start=str(tmp_path)), target, ())


def test_sequences_too_short(target):
    with pytest.raises(ValueError, match=r"training.length is 9; .* make 10"):
        make_head(config(length=9), target, ())
    assert make_head(config(length=10), target, ())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"steps": 0}, "training.steps is 0"),
        ({"batch": 1.5}, "training.batch is 1.5"),
        ({"loss": "kll"}, "Did you mean 'kl'?"),
        ({"dtype": "float16"}, "unknown training.dtype"),
        ({"head": None}, "training.head is not given"),
        ({"data": dataclasses.replace(DATA, slots=0)}, "data.slots is 0"),
        ({"decay_share": 0.0}, r"training.decay_share is 0.0; expected a number above 0, at most 1"),
        ({"learning_rate": "1e-3"}, "training.learning_rate is '1e-3'; expected a number above 0$"),
        ({"data": dataclasses.replace(DATA, corpus_share=1.0)}, "data.corpus_share is 1.0"),
        ({"data": dataclasses.replace(DATA, temperatures=[])}, "data.temperatures is"),
        ({"data": dataclasses.replace(DATA, temperatures=[-1.0])}, "data.temperatures is"),
        ({"data": dataclasses.replace(DATA, packages=[])}, "data.packages is empty"),
        ({"data": dataclasses.replace(DATA, path="/nowhere/*.txt")}, "matches no file"),
    ],
)
def test_settings_out_of_range(settings, told):
    assert check_settings(config())
    with pytest.raises(ValueError, match=told):
        check_settings(dataclasses.replace(config(), **settings))
