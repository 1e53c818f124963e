"""The losses: zero where head and target agree, sound with tokens that are never drafted, and what they say of
acceptance."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specdec.experiments.training.heads.losses import LOSSES, acceptance, depth_weights, token_losses

SHAPE = (2, 3, 4, 11)  # [B, A, K, V]


def made(seed: int, scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of head and target `[B, A, K, V]`, and tokens `[B, A, K]`."""
    generator = torch.Generator().manual_seed(seed)
    own, target = (scale * torch.randn(SHAPE, generator=generator) for _ in range(2))
    return own, target, torch.randint(0, SHAPE[-1], SHAPE[:-1], generator=generator)


@pytest.mark.parametrize("kind", [k for k in LOSSES if k != "ce"])
@given(seed=st.integers(0, 1000), shift=st.floats(-5, 5))
def test_zero_where_they_agree(kind, seed, shift):
    _, target, labels = made(seed)
    assert token_losses(kind, target + shift, target, labels).abs().max() < 1e-5
    assert (token_losses(kind, -target, target, labels) > 1e-3).all()


@given(seed=st.integers(0, 1000), scale=st.floats(0, 30))
def test_what_they_are(seed, scale):
    own, target, labels = made(seed, scale)
    q, p = own.softmax(-1), target.softmax(-1)
    overlap = acceptance(own.log_softmax(-1), target)
    losses = {kind: token_losses(kind, own, target, labels) for kind in LOSSES}
    assert torch.allclose(overlap, torch.minimum(p, q).sum(-1), atol=1e-6)
    assert torch.allclose(losses["tv"], (p - q).abs().sum(-1) / 2, atol=1e-5)
    assert torch.allclose(losses["tv"], 1 - overlap)
    assert torch.allclose(losses["lk"].neg().exp(), overlap.clamp_min(1e-12), rtol=1e-4)
    picked = own.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    assert torch.allclose(losses["ce"], -picked)
    kl = (p * (p.log().clamp_min(-100) - own.log_softmax(-1))).sum(-1)
    assert torch.allclose(losses["kl"], kl, rtol=1e-3, atol=1e-4)
    low, high = torch.minimum(losses["kl"], losses["tv"]), torch.maximum(losses["kl"], losses["tv"])
    assert ((low - 1e-5 <= losses["lk_blend"]) & (losses["lk_blend"] <= high + 1e-5)).all()


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("target_scale", [1.0, 1e4])
def test_tokens_that_are_never_drafted(kind, target_scale):
    """Everything is finite, even where the target wants nothing else, and they get no gradient."""
    own, target, labels = made(3)
    never = torch.zeros(SHAPE[-1], dtype=torch.bool)
    never[[0, 4, 7]] = True
    labels[0] = 4
    target = target_scale * target
    target[1, 0, :, 7] = 2 * target_scale * 10
    own = own.requires_grad_()
    losses = token_losses(kind, own.masked_fill(never, -torch.inf), target, labels)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert own.grad is not None
    assert own.grad.isfinite().all()
    assert own.grad[..., ~never].abs().sum() > 0
    assert (own.grad[..., never] == 0).all()
    if kind == "ce":
        assert (losses[0] == 0).all()
    if kind == "kl":
        restricted = token_losses(kind, target.masked_fill(never, -torch.inf), target, labels)
        assert restricted.abs().max() < 1e-5


def test_the_blend_goes_from_kl_to_tv():
    own, target, labels = made(5)
    far, near = -20 * target, target + 0.01 * own
    assert torch.allclose(
        token_losses("lk_blend", far, target, labels), token_losses("kl", far, target, labels), rtol=0.05
    )
    share = torch.exp(-3 * acceptance(near.log_softmax(-1), target))
    assert (share < 0.06).all()
    expected = share * token_losses("kl", near, target, labels) + (1 - share) * token_losses("tv", near, target, labels)
    assert torch.allclose(token_losses("lk_blend", near, target, labels), expected)


@pytest.mark.parametrize("kind", ["tv", "lk", "lk_blend", "kl"])
def test_going_down_raises_acceptance(kind):
    own, target, labels = made(7, 1.0)
    before = acceptance(own.log_softmax(-1), target).mean()
    own = own.requires_grad_()
    optimizer = torch.optim.Adam([own], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        token_losses(kind, own, target, labels).mean().backward()
        optimizer.step()
    assert acceptance(own.log_softmax(-1), target).mean() > before + 0.3


def test_depth_weights():
    assert torch.allclose(depth_weights(3, 0.5), torch.tensor([4.0, 2.0, 1.0]) / 7)
    assert torch.allclose(depth_weights(2, 1.0), torch.tensor([0.5, 0.5]))


def test_an_unknown_loss():
    own, target, labels = made(0)
    with pytest.raises(ValueError, match="expected one of: ce, kl, tv, lk, lk_blend"):
        token_losses("lks", own, target, labels)
