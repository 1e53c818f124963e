"""What kernels that sample share: the noise in Triton has the bits of torch's, and the same tokens stay in a row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

import triton
import triton.language as tl

from specdec import noise
from specdec.kernels.common.filters.fused import row_block, row_ends, row_filter, stays
from specdec.kernels.common.filters.naive import filter_rows
from specdec.kernels.common.fused import gumbel, noise_key, ordered_float, ordered_integer, uniform
from specdec.sampling import SamplingParams

from .cases import DEVICE
from .sampling_cases import SETTINGS, settings_of, stable_sort

SEEDS = [0, 1, -5, 2**31, 2**33 + 17, 2**63 - 1]
POSITIONS = [0, 1, 77, 4095, 2**31 - 1, -3]


@triton.jit
def noise_kernel(seeds, positions, uniforms, gumbels, B, V, STREAM: tl.constexpr, BLOCK: tl.constexpr):
    b = tl.program_id(0)
    v = tl.arange(0, BLOCK)
    low, high = noise_key(seeds, B, b, tl.load(positions + b), STREAM)
    tl.store(uniforms + b * V + v, uniform(low, high, v), mask=v < V)
    tl.store(gumbels + b * V + v, gumbel(low, high, v), mask=v < V)


@triton.jit
def order_kernel(x, keys, back, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    key = ordered_integer(tl.load(x + i))
    tl.store(keys + i, key)
    tl.store(back + i, ordered_float(key))


@triton.jit
def stays_kernel(logits, temperature, top_k, top_p, min_p, kept, V, BLOCK: tl.constexpr):
    b = tl.program_id(0)
    row = logits + b * V
    heat = tl.load(temperature + b)
    lowest, highest = row_ends(row, V, BLOCK)
    cut, first = row_filter(
        row, V, lowest, highest, heat, tl.load(top_k + b), tl.load(top_p + b), tl.load(min_p + b), BLOCK
    )
    for start in tl.range(0, V, BLOCK):
        v, x = row_block(row, start, V, BLOCK)
        tl.store(kept + b * V + v, stays(v, x, V, cut, first).to(tl.int8), mask=v < V)


@pytest.mark.parametrize(
    "stream", [noise.TARGET_STREAM, noise.DRAFT_STREAM, noise.ACCEPT_STREAM, noise.RESIDUAL_STREAM]
)
def test_noise_has_the_bits_of_torch(stream: int) -> None:
    vocab = 3000
    seeds = noise.seed_words(SEEDS, DEVICE)
    positions = torch.tensor(POSITIONS, dtype=torch.int32, device=DEVICE)
    uniforms, gumbels = (torch.empty(len(SEEDS), vocab, device=DEVICE) for _ in range(2))
    noise_kernel[(len(SEEDS),)](seeds, positions, uniforms, gumbels, len(SEEDS), vocab, STREAM=stream, BLOCK=4096)
    keys = noise.keys(seeds, positions[:, None], stream)[..., 0]
    assert torch.equal(uniforms, noise.uniform(keys, vocab))
    # two logarithms, each within a few units in the last place of its own result
    torch.testing.assert_close(gumbels, noise.gumbel(keys, vocab), rtol=1e-6, atol=1e-6)


def test_ordered_integers() -> None:
    inf = float("inf")
    numbers = [-inf, -3e38, -1.5, -1e-45, -0.0, 0.0, 1e-45, 0.5, 0.50000006, 3e38, inf]
    x = torch.tensor([*numbers, *[inf] * 5], device=DEVICE)  # [16]
    keys, back = torch.empty_like(x, dtype=torch.int32), torch.empty_like(x)
    order_kernel[(1,)](x, keys, back, BLOCK=16)
    assert back.tolist() == x.tolist()
    assert keys[: len(numbers)].tolist() == sorted(set(keys.tolist()))


def who_stays(logits: Tensor, params: list[SamplingParams], block: int) -> Tensor:
    """`[B, V]` bool, as the kernels say."""
    chosen = {name: tensor.to(DEVICE) for name, tensor in settings_of(params).items() if name != "seeds"}
    logits = logits.to(DEVICE)
    kept = torch.full(logits.shape, 2, dtype=torch.int8, device=DEVICE)
    stays_kernel[(len(params),)](logits, *chosen.values(), kept, logits.shape[1], BLOCK=block)
    assert (kept < 2).all()
    return kept.bool()


def check_who_stays(logits: Tensor, params: list[SamplingParams], block: int = 64) -> None:
    """The kernels, the reference in torch and transformers' own warpers keep the same tokens."""
    chosen = {name: tensor for name, tensor in settings_of(params).items() if name != "seeds"}
    naive = filter_rows(logits, *chosen.values())
    for b, one in enumerate(params):
        warpers = one.warpers()
        row = logits[b : b + 1].float()
        with stable_sort():
            assert torch.equal(naive[b : b + 1], warpers(None, row) if warpers else row)
    assert torch.equal(who_stays(logits, params, block).cpu(), naive > float("-inf"))


SAMPLED = [params for params in SETTINGS if params.temperature]


@pytest.mark.parametrize("vocab", [1, 7, 64, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_who_stays(vocab: int, dtype: torch.dtype) -> None:
    check_who_stays((torch.randn(len(SAMPLED), vocab) * 2).to(dtype), SAMPLED)


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=70),
    st.integers(0, 80),
    st.floats(0.05, 0.99),
    st.floats(0.0, 0.9),
    st.floats(0.1, 5.0),
)
@settings(max_examples=12)
def test_who_stays_among_equals(numbers: list[int], top_k: int, top_p: float, min_p: float, temperature: float) -> None:
    logits = torch.tensor([numbers, numbers], dtype=torch.float32)
    with_k = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    check_who_stays(logits, [with_k, SamplingParams(temperature=temperature, top_p=top_p)])


def test_half_of_eight_equals() -> None:
    """An exact share: four of eight equal tokens, those with the higher ids."""
    stay = who_stays(torch.zeros(1, 8), [SamplingParams(temperature=1.0, top_p=0.5)], 16)
    assert stay[0].tolist() == [False] * 4 + [True] * 4


def test_all_equals_at_the_cut_of_top_k_stay() -> None:
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    assert who_stays(logits, [SamplingParams(temperature=1.0, top_k=2)], 16)[0].tolist() == [True] * 4 + [False]
