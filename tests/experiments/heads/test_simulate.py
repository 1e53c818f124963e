"""The walk over held-out text counts what the loop counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from specdec.engine import Engine
from specdec.experiments.training.heads.batches import Places
from specdec.experiments.training.heads.sequences import Sequences
from specdec.experiments.training.heads.simulate import simulate, walk
from specdec.experiments.training.heads.teacher import Teacher
from specdec.metrics import DecodingStats
from specdec.request import Request
from specdec.target import Target

from ...models import make_model
from .simple import SimpleChains, SimpleHead

NEW_TOKENS = 60


def fitted(model, depth: int) -> tuple[SimpleHead, list[list[int]], list[int]]:
    """A head that sometimes is right: least squares on the target's own greedy texts; and these texts."""
    prompts = torch.randint(2, model.config.vocab_size, (5, 7), generator=torch.Generator().manual_seed(0)).tolist()
    prompts = [prompt[: 3 + row] for row, prompt in enumerate(prompts)]
    rows: list[list[int]] = [[] for _ in prompts]
    requests = [Request(prompt, NEW_TOKENS) for prompt in prompts]
    for generation, _ in Engine(model, "none", None, "coupled").run(requests, DecodingStats()):
        rows[generation.index] = generation.ids
    head = SimpleHead.new(Target(model), depth).double()
    texts = torch.tensor([row[-NEW_TOKENS:] for row in rows])
    hidden = Teacher(model, (-1,)).hidden(texts)[-1]
    with torch.no_grad():
        for k, layer in enumerate(head.layers):
            inputs = hidden[:, : -2 - k].flatten(0, 1)
            wanted = torch.nn.functional.one_hot(texts[:, 2 + k :].flatten(), head.vocab_size).double()
            assert isinstance(layer, nn.Linear)
            layer.weight.copy_(torch.linalg.lstsq(inputs, wanted).solution.T)
            layer.bias.zero_()
    return head, rows, [len(prompt) for prompt in prompts]


@pytest.mark.parametrize("depth", [1, 3])
def test_what_the_loop_measures(depth):
    model = make_model("llama", dtype=torch.float64, num_hidden_layers=1)
    head, rows, prompts = fitted(model, depth)
    teacher = Teacher(model, (-1,))
    places = Places.of(Sequences.of(rows, prompts), depth, 1000)
    found = simulate(head, teacher, places, torch.float64)

    stats = DecodingStats()
    engine = Engine(model, SimpleChains(head), None, "coupled")
    for _ in engine.run([Request(r[:p], NEW_TOKENS) for r, p in zip(rows, prompts, strict=True)], stats):
        pass
    steps = np.zeros(depth + 1, dtype=np.int64)
    for row, prompt, request in zip(rows, prompts, stats.requests, strict=True):
        root = prompt
        for emitted in request.accept_lengths:
            if root + depth < len(row):  # there the walk ends, as a whole draft no longer fits
                steps[emitted - 1] += 1
            root += emitted
    assert found.steps.tolist() == steps.tolist()
    assert 0 < steps[-1] < steps.sum()  # neither always right nor never
    assert found.mean_accepted_length == pytest.approx(stats.mean_accepted_length_pooled, rel=0.05)


def test_in_pieces_it_is_the_same(monkeypatch):
    model = make_model("llama", dtype=torch.float64, num_hidden_layers=1)
    head, rows, prompts = fitted(model, 2)
    places = Places.of(Sequences.of(rows, prompts), 2, 50)
    whole = simulate(head, Teacher(model, (-1,)), places, torch.float64)
    module = "specdec.experiments.training.heads.simulate"
    monkeypatch.setattr(f"{module}.ROWS_AT_ONCE", 2)
    monkeypatch.setattr(f"{module}.LOGITS_AT_ONCE", 7 * 2 * 2 * model.config.vocab_size)
    pieces = simulate(head, Teacher(model, (-1,)), places, torch.float64)
    assert whole.steps.tolist() == pieces.steps.tolist()


def test_a_walk():
    accepted = torch.tensor([[1, 9, 0, 2, 9, 9, 0], [2, 9, 9, 1, 9, 9, 9]])
    assert walk(accepted, torch.tensor([7, 4]), 2).tolist() == [2, 2, 2]  # 1, 0, 2, 0 and 2, 1
    assert walk(accepted, torch.tensor([2, 0]), 2).tolist() == [0, 1, 0]
