"""The frozen target: its logits at the roots' continuations are those of a plain forward pass."""

from __future__ import annotations

import pytest
import torch

from specdec.experiments.training.heads.teacher import Teacher

from ...models import make_model


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "cohere2", "granite"])  # some change logits after the head
def test_logits_where_a_head_is_asked(architecture):
    model = make_model(architecture, dtype=torch.float64)
    tokens = torch.randint(2, 80, (3, 20))
    anchors = torch.tensor([[1, 4, 16], [2, 2, 3], [15, 1, 9]])
    hidden, logits = Teacher(model, (0, -1))(tokens, anchors, 3)
    assert logits.shape == (3, 3, 3, model.config.vocab_size)
    plain = model(tokens, output_hidden_states=True)
    for b in range(3):
        for a in range(3):
            expected = plain.logits[b, anchors[b, a] : anchors[b, a] + 3]
            assert torch.allclose(logits[b, a], expected, atol=1e-10)
    assert torch.equal(hidden[-1], plain.hidden_states[-1])
    assert torch.equal(hidden[0], plain.hidden_states[1])
    assert torch.equal(Teacher(model, (0, -1)).hidden(tokens)[-1], hidden[-1])
    assert not logits.requires_grad


def test_padding_changes_nothing():
    model = make_model("llama", dtype=torch.float64)
    tokens = torch.randint(2, 80, (1, 12))
    padded = torch.cat([tokens, torch.zeros(1, 5, dtype=torch.int64)], 1)
    anchors = torch.tensor([[1, 9]])
    one, other = (Teacher(model, (-1,))(t, anchors, 2) for t in (tokens, padded))
    assert torch.allclose(one[1], other[1], atol=1e-12)
    assert torch.allclose(one[0][-1], other[0][-1][:, :12], atol=1e-12)


def test_no_such_layer():
    with pytest.raises(ValueError, match="hidden layer 2 asked"):
        Teacher(make_model("llama"), (2,))
