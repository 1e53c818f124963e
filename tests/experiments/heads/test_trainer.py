"""The loop: it learns, goes on after a kill, and splitting a step changes nothing but rounding."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from specdec.experiments.training.heads import trainer
from specdec.experiments.training.heads.batches import Places
from specdec.experiments.training.heads.config import DataConfig, HeadTrainingConfig
from specdec.experiments.training.heads.distil import Data
from specdec.experiments.training.heads.sequences import Sequences
from specdec.experiments.training.heads.teacher import Teacher
from specdec.target import Target

from ...models import make_model
from .simple import SimpleHead

DEPTH = 3


@pytest.fixture(scope="module")
def model():
    return make_model("llama", num_hidden_layers=1)


@pytest.fixture(scope="module")
def data(model) -> Data:
    """Texts in which one token follows from the one before; two are pieces of texts, and one is too short."""
    generator = np.random.default_rng(0)
    rows = []
    for length in [30, 24, 30, 17, 30, 30, 28, 30, 30, 30, 5]:
        row = [int(generator.integers(2, 80))]
        while len(row) < length:
            row.append((row[-1] * 7 + 3) % 78 + 2)
        rows.append(row)
    prompts = [4, 6, 30, 4, 4, 30, 5, 4, 4, 4, 4]
    return Data(Sequences.of(rows, prompts), Sequences.of(rows[:2], prompts[:2]), [])


@pytest.fixture
def config(tmp_path) -> HeadTrainingConfig:
    return HeadTrainingConfig(
        str(tmp_path / "out"),
        "simple",
        DataConfig("cache"),
        steps=6,
        batch=4,
        anchors=5,
        length=30,
        learning_rate=1e-2,
        warmup_steps=2,
        evaluate_every=2,
        checkpoint_every=2,
        dtype="float32",
    )


def run(config, model, data, told=lambda *_: None, **settings):
    torch.manual_seed(config.seed)
    head = SimpleHead.new(Target(model), DEPTH, **settings)
    return head, trainer.train(config, head, Teacher(model, (-1,)), data, told, Accelerator(cpu=True))


def weights(head) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in head.parameters()]


@pytest.mark.parametrize("loss", ["ce", "kl", "tv", "lk", "lk_blend"])
def test_it_learns(loss, config, model, data):
    told = []
    run(
        dataclasses.replace(config, loss=loss, steps=60, learning_rate=3e-2, evaluate_every=60),
        model,
        data,
        lambda step, value, accepted: told.append(value),
        skip=4,
    )
    assert len(told) == 60
    assert np.mean(told[-5:]) < 0.8 * np.mean(told[:5])


def test_it_learns_what_the_loop_wants(config, model, data):
    """With the target's own tokens as labels and a text that the hidden state gives away, drafts are accepted."""
    long = dataclasses.replace(config, loss="ce", steps=250, learning_rate=3e-2, evaluate_every=250, batch=8)
    written = data.train.only(data.train.prompt_lengths < 30)
    _, result = run(long, model, Data(written, data.held_out, []))
    assert result.held_out.mean_accepted_length > 2
    assert result.history == [(250, pytest.approx(result.history[0][1]), result.held_out.mean_accepted_length)]


def test_a_killed_training_goes_on_to_the_same_weights(config, model, data, tmp_path):
    config = dataclasses.replace(config, dtype="bfloat16")
    whole, expected = run(dataclasses.replace(config, output=str(tmp_path / "whole")), model, data)

    def stop(step, loss, accepted):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, model, data, stop)
    told = []
    parts, got = run(config, model, data, lambda step, loss, accepted: told.append(step))
    assert told == [5, 6]
    assert got.history == expected.history
    assert len(got.history) == 3
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(parts), strict=True))


def test_gradient_accumulation_is_a_larger_batch(config, model, data, tmp_path):
    config = dataclasses.replace(config, loss="lk")
    one, _ = run(config, model, data)
    four, _ = run(dataclasses.replace(config, accumulate=4, output=str(tmp_path / "four")), model, data)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(weights(one), weights(four), strict=True))
    other, _ = run(dataclasses.replace(config, seed=1, output=str(tmp_path / "other")), model, data)
    assert not all(torch.allclose(a, b, atol=1e-3) for a, b in zip(weights(one), weights(other), strict=True))


def test_what_cannot_be_shared(config, model, data):
    with pytest.raises(ValueError, match="give a multiple of 3"):
        run(dataclasses.replace(config, accumulate=3), model, data)
    with pytest.raises(ValueError, match=r"10 sequences long enough .* fewer than training.batch=12"):
        run(dataclasses.replace(config, batch=12), model, data)


def test_anchors_stay_where_the_head_may_be_asked(data):
    places = Places.of(data.train, DEPTH, 28)
    assert len(places) == 10
    seen = set()
    for step in range(200):
        rows, anchors = places.draw(step, 0, 4, 6)
        batch = places.batch(rows, anchors)
        assert batch.tokens.shape[1] <= 28
        for row, ours, written in zip(rows, anchors, batch.written, strict=True):
            length, prompt = min(places.sequences.lengths[row], 28), places.sequences.prompt_lengths[row]
            whole = prompt == places.sequences.lengths[row]
            assert written != whole
            assert (ours >= (1 if whole else prompt)).all()
            assert (ours + DEPTH <= length - 1).all()
            assert (np.diff(ours) >= 0).all()
            seen |= {(int(row), int(anchor)) for anchor in ours}
    assert seen == {(r, a) for r in range(10) for a in range(places.first[r], places.first[r] + places.count[r])}


def test_every_sequence_is_seen_once_a_pass(data):
    places = Places.of(data.train, DEPTH, 30)
    first = np.concatenate([places.draw(step, 0, 5, 2)[0] for step in (0, 1)])
    second = np.concatenate([places.draw(step, 0, 5, 2)[0] for step in (2, 3)])
    assert sorted(first) == sorted(second) == list(range(10))
    assert list(first) != list(second)


def test_labels_of_a_piece_of_text_are_the_targets(config, model, data):
    """Where the target did not write, its likeliest token is what a head has to say."""
    objective = trainer.Objective(SimpleHead.new(Target(model), DEPTH), dataclasses.replace(config, loss="ce"))
    places = Places.of(data.train, DEPTH, 30)
    rows = np.array([2, 0])  # a piece, and what the target wrote
    batch = places.batch(rows, places.first[rows, None] + np.arange(2))
    hidden, logits = Teacher(model, (-1,))(batch.tokens, batch.anchors, DEPTH)
    labels = torch.stack([batch.tokens.gather(1, batch.anchors + 1 + k) for k in range(DEPTH)], -1)  # [B, A, K]
    labels[0] = logits[0].argmax(-1)
    own = objective.head.predict(batch.tokens, hidden, batch.anchors).log_softmax(-1)
    expected = -own.gather(-1, labels[..., None])[..., 0].mean((0, 1)) @ objective.weights
    assert torch.allclose(objective(batch, hidden, logits), expected)


def test_sequences_too_short_for_a_block(data):
    with pytest.raises(ValueError, match="no sequence has 31 tokens after its prompt within the first 30"):
        Places.of(data.train, 30, 30)
