"""The noise is a pure function, uniform, and independent wherever two numbers differ in what they are for.

False alarms: every statistical test here fails by chance with a probability below ALARM if the noise is as it should
be. The inputs are fixed, so a test that passes once passes always.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from specdec import noise

from .chance import chi_square, correlation_tail, kolmogorov_smirnov

CPU = torch.device("cpu")
ALARM = 1e-6
BITS = [[3680827648, 1307973760, 1274077824, 1658212096], [1190320896, 2463299584, 2273077248, 714723328]]
STREAMS = [noise.TARGET_STREAM, noise.DRAFT_STREAM, noise.ACCEPT_STREAM, noise.RESIDUAL_STREAM]


def keys(seeds: list[int], positions: list[int], stream: int = noise.TARGET_STREAM) -> Tensor:
    """`[2, B, M]`: every seed at every position."""
    return noise.keys(noise.seed_words(seeds, CPU), torch.tensor(positions).expand(len(seeds), -1), stream)


def uniform(seeds: list[int], positions: list[int], count: int, stream: int = noise.TARGET_STREAM) -> Tensor:
    """`[B, M, count]`."""
    return noise.uniform(keys(seeds, positions, stream), count)


def test_same_bits_for_any_batch() -> None:
    seeds, positions = [3, 2**40 + 3, -5], [0, 7, 100, 4095]
    together = uniform(seeds, positions, 50)
    for b, seed in enumerate(seeds):
        for m, position in enumerate(positions):
            assert torch.equal(uniform([seed], [position], 50)[0, 0], together[b, m])
            assert torch.equal(uniform([seed], [position], 9)[0, 0], together[b, m, :9])
    assert torch.equal(together, uniform(seeds, positions, 50))


def test_the_bits_are_these() -> None:
    """Texts are reproducible across releases: a change of the noise is a change of every seeded text."""
    assert (uniform([0], [1], 4)[0, 0] * 2**32).long().tolist() == BITS[0]
    assert (uniform([2**33 + 17], [1000], 4, noise.RESIDUAL_STREAM)[0, 0] * 2**32).long().tolist() == BITS[1]


def test_seeds_of_any_size_differ() -> None:
    seeds = [0, 1, -1, 2**31, 2**32, 2**32 + 1, -(2**31), 2**63 - 1]
    rows = uniform(seeds, [5], 8)[:, 0]
    assert len({tuple(r.tolist()) for r in rows}) == len(seeds)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(
    ("seeds", "positions", "count"),
    [
        ([1], [3], 200_000),
        ([1], list(range(2000)), 100),
        (list(range(20_000)), [12], 10),
        ([1], list(range(200_000)), 1),
    ],
    ids=["tokens", "positions", "seeds", "one token"],
)
def test_uniform(stream: int, seeds: list[int], positions: list[int], count: int) -> None:
    numbers = uniform(seeds, positions, count, stream)
    assert float(numbers.min()) > 0
    assert float(numbers.max()) <= 1
    assert kolmogorov_smirnov(numbers) > ALARM
    cells = (numbers.flatten() * 1000).long().clamp_max(999)
    assert chi_square(cells.bincount(minlength=1000), torch.full((1000,), 1e-3)) > ALARM


@pytest.mark.parametrize("stream", STREAMS)
def test_fine_near_zero(stream: int) -> None:
    """Small numbers, which decide an argmax, are uniform too: those below 2**-8, scaled up, by their distribution."""
    numbers = uniform(list(range(40)), list(range(50)), 2000, stream).flatten()
    small = numbers[numbers < 2**-8]
    expected = len(numbers) * 2**-8
    assert abs(len(small) - expected) < 5 * math.sqrt(expected)  # 5 sigma: 6e-7
    assert kolmogorov_smirnov(small * 2**8) > ALARM


@pytest.mark.parametrize("lag", [1, 2, 3, 16, 64])
def test_independent_of_neighbours(lag: int) -> None:
    """Adjacent tokens, positions and seeds: neither the numbers nor their distances from the middle correlate."""
    numbers = uniform(list(range(100)), list(range(100)), 100)
    for axis in range(3):
        length = numbers.shape[axis] - lag
        here, there = numbers.narrow(axis, 0, length), numbers.narrow(axis, lag, length)
        assert correlation_tail(here, there) > ALARM
        assert correlation_tail((here - 0.5).abs(), (there - 0.5).abs()) > ALARM


def test_independent_along_diagonals() -> None:
    """A token's number here says nothing about another token's at the next position or for the next seed."""
    numbers = uniform(list(range(60)), list(range(60)), 300)
    for seed, position, token in [(0, 1, 1), (0, 1, -1), (1, 1, 0), (1, -1, 0), (1, 0, 1), (1, 1, 1)]:
        moved = numbers.roll((seed, position, token), (0, 1, 2))[1:-1, 1:-1, 1:-1]
        assert correlation_tail(numbers[1:-1, 1:-1, 1:-1], moved) > ALARM


def test_streams_are_independent() -> None:
    numbers = [uniform(list(range(100)), list(range(50)), 100, stream) for stream in STREAMS]
    for i, one in enumerate(numbers):
        for other in numbers[:i]:
            assert correlation_tail(one, other) > ALARM
            assert correlation_tail((one - 0.5).abs(), (other - 0.5).abs()) > ALARM


def test_seeds_a_weyl_step_apart() -> None:
    """The worst case of the key schedule: such seeds share their low key words one position apart."""
    one = uniform(list(range(100)), list(range(1, 51)), 100)
    other = uniform([s + 0x9E3779B9 for s in range(100)], list(range(50)), 100)
    assert correlation_tail(one, other) > ALARM


@pytest.mark.parametrize("count", [2, 7])
def test_gumbel_max_draws_from_the_softmax(count: int) -> None:
    logits = torch.randn(count, generator=torch.Generator().manual_seed(count)) * 2
    drawn = noise.gumbel(keys(list(range(400)), list(range(500))), count)  # [400, 500, count]
    counts = (logits + drawn).argmax(-1).flatten().bincount(minlength=count)
    assert chi_square(counts, logits.double().softmax(-1)) > ALARM


def test_gumbel_max_draws_rare_tokens_among_many() -> None:
    """One token of probability 1/2 among 20,000 that share the rest: neither side of the tail is cut."""
    logits = torch.zeros(20_001)
    logits[7_000] = math.log(20_000)
    drawn = torch.cat([noise.gumbel(keys([s], list(range(100))), 20_001)[0] for s in range(20)])  # [2000, V]
    tokens = (logits + drawn).argmax(-1)
    halves = torch.stack([(tokens == 7_000).sum(), (tokens < 7_000).sum(), (tokens > 7_000).sum()])
    assert chi_square(halves, torch.tensor([0.5, 0.175, 0.325])) > ALARM


def test_draws_at_adjacent_positions_are_independent() -> None:
    """Pairs of tokens drawn at neighbouring positions fill the product distribution."""
    logits = torch.tensor([0.5, -0.3, 0.1, 1.0])
    tokens = (logits + noise.gumbel(keys(list(range(1000)), list(range(200))), 4)).argmax(-1)  # [1000, 200]
    pairs = (tokens[:, 0::2] * 4 + tokens[:, 1::2]).flatten().bincount(minlength=16)
    probs = logits.double().softmax(-1)
    assert chi_square(pairs, torch.outer(probs, probs)) > ALARM


def test_gumbel_never_decides_alone() -> None:
    """Over millions of draws no NaN and no +inf, and no more than log(2**32)."""
    for seed in range(5):
        drawn = noise.gumbel(keys([seed], list(range(50))), 20_000)
        assert not drawn.isnan().any()
        assert float(drawn.max()) < 22.2


def test_extreme_bits() -> None:
    """The smallest and the largest number that the hash can give: a finite bonus, and a token never drawn."""
    ends = torch.tensor([0, 0x7FFFFFFF], dtype=torch.int32).to(torch.float32).add(0.5).mul(2.0**-31)
    drawn = -(-torch.log1p(-ends)).log()
    assert math.isfinite(float(drawn[0]))
    assert float(drawn[1]) == -math.inf


def test_ties_are_rare_over_a_flat_vocabulary() -> None:
    """100,000 equally likely tokens: hardly ever do two share the first place."""
    ties = 0
    for seed in range(5):
        drawn = noise.gumbel(keys([seed], list(range(100))), 100_000)[0]  # [100, V]
        best = drawn.topk(2).values
        ties += int((best[:, 0] == best[:, 1]).sum())
    # a tie has a probability of about 100_000 * 2**-31 = 5e-5, so that 500 draws have 0.025; 4 or more: 2e-8
    assert ties < 4


@pytest.mark.gpu
def test_same_bits_on_a_gpu() -> None:
    here = keys([1, 2**40], [3, 4, 500])
    assert torch.equal(noise.uniform(here, 5000), noise.uniform(here.cuda(), 5000).cpu())
