"""Recursive rejection: torch and Triton against the rule of the loop, decision for decision.

The test of a distribution gives a false alarm with a probability below 1e-6; its inputs are fixed, so a test that
passes once passes always.
"""

import importlib.util
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from specdec import noise
from specdec.acceptance.rejection import Rejection
from specdec.kernels.tree_rejection import tree_rejection
from specdec.sampling import Sampler, SamplingParams
from specdec.tree.token_tree import TokenTree

from ..chance import chi_square
from .cases import DEVICE, random_parents
from .sampling_cases import SETTINGS, settings_of, stable_sort

TRITON = ["triton"] if importlib.util.find_spec("triton") else []
BACKENDS: list[Any] = ["naive", *TRITON]
Verdict = tuple[Tensor, Tensor, Tensor]
PLAIN = SamplingParams(temperature=1.0)


def make_case(sizes: list[int], vocab: int, params: list[SamplingParams], dtype: torch.dtype, seed: int) -> Any:
    """Random trees whose tokens are likely ones; the draft is near the target, and gives nothing to some tokens."""
    generator = torch.Generator().manual_seed(seed)
    batch, nodes = len(sizes), max(*sizes, 1)
    parents = torch.full((batch, nodes), -1, dtype=torch.int32)
    for b, size in enumerate(sizes):
        parents[b, :size] = torch.tensor(random_parents(size, generator), dtype=torch.int32)
    logits = (torch.randn(batch, nodes, vocab, generator=generator) * 2).to(dtype)
    draft_probs = (logits.float() + torch.randn(batch, nodes, vocab, generator=generator)).softmax(-1)
    draft_probs[torch.rand(draft_probs.shape, generator=generator) < 0.1] = 0
    draft_probs /= draft_probs.sum(-1, keepdim=True).clamp_min(1e-9)
    likely = logits.float().topk(min(vocab, 4), dim=-1).indices  # [B, N, 4]
    tokens = torch.randint(0, vocab, (batch, nodes), generator=generator)
    for b, size in enumerate(sizes):
        for j in range(1, size):
            choice = int(torch.randint(0, likely.shape[2], (1,), generator=generator))
            tokens[b, j] = likely[b, int(parents[b, j]), choice]
    case = {
        "tokens": tokens,
        "parents": parents,
        "sizes": torch.tensor(sizes, dtype=torch.int32),
        "logits": logits,
        "draft_probs": draft_probs,
        "positions": torch.randint(0, 5000, (batch,), generator=generator, dtype=torch.int32),
        **settings_of(params),
    }
    return {name: tensor.to(DEVICE) for name, tensor in case.items()}


def poisoned(case: Any) -> Any:
    """The same trees; what nobody may read would lead astray: padding, and the draft's rows of leaves."""
    case = {name: tensor.clone() for name, tensor in case.items()}
    for b, size in enumerate(case["sizes"].tolist()):
        case["tokens"][b, size:] = 2**60
        case["parents"][b, size:] = 0
        case["logits"][b, size:] = float("nan")
        leaves = [j for j in range(case["tokens"].shape[1]) if j not in case["parents"][b, :size].tolist()]
        case["draft_probs"][b, leaves] = float("nan")
    return case


def rule(case: Any, params: list[SamplingParams], replacement: bool = False) -> Verdict:
    """What the rule of the loop decides."""
    batch, nodes, vocab = case["logits"].shape
    sampler = Sampler(batch, vocab, DEVICE)
    for slot, chosen in enumerate(params):
        sampler.start(slot, chosen, [])
    tree = TokenTree(case["tokens"], case["parents"], case["sizes"], case["draft_probs"], replacement=replacement)
    with stable_sort():
        verdict = Rejection()(tree, case["logits"], sampler.at(case["positions"], nodes, list(range(batch))))
    return verdict.path, verdict.num_accepted, verdict.next_token


def check_equal(found: Verdict, wanted: Verdict) -> None:
    for got, expected in zip(found, wanted, strict=True):
        assert got.dtype == expected.dtype
        assert got.tolist() == expected.tolist()


def check(backend: Any, case: Any, params: list[SamplingParams], replacement: bool = False) -> Verdict:
    found = tree_rejection(**poisoned(case), replacement=replacement, backend=backend)
    check_equal(found, rule(case, params, replacement))
    return found


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("vocab", [1, 7, 129, 1000])
def test_every_mix_of_settings(backend: Any, vocab: int, replacement: bool) -> None:
    sizes = [5, 0, 8, 1, 6, 3, 7, 8, 2, 6, 8]
    dtype = {7: torch.bfloat16, 129: torch.float16}.get(vocab, torch.float32)
    check(backend, make_case(sizes, vocab, SETTINGS, dtype, vocab), SETTINGS, replacement)


@pytest.mark.parametrize("backend", BACKENDS)
def test_siblings_drawn_with_replacement(backend: Any) -> None:
    """Four children of the root drawn from a poor draft of three tokens: equal ones in every tree, some of them refused
    before a later one is taken, and other decisions than without replacement."""
    params = [SamplingParams(temperature=1.0, seed=seed) for seed in range(40)]
    case = make_case([5] * 40, 3, params, torch.float32, 11)
    case["parents"][:, 1:] = 0
    case["draft_probs"] = torch.randn(40, 5, 3, generator=torch.Generator().manual_seed(2)).softmax(-1).to(DEVICE)
    generator = torch.Generator(DEVICE).manual_seed(3)
    case["tokens"][:, 1:] = torch.multinomial(case["draft_probs"][:, 0], 4, replacement=True, generator=generator)
    path, _, last = check(backend, case, params, replacement=True)
    assert {-1, 1, 2, 3} <= set(path[:, 1].tolist())
    other = tree_rejection(**case, backend=backend)
    assert not torch.equal(path, other[0]) or not torch.equal(last, other[2])


@pytest.mark.parametrize("backend", TRITON)
def test_vocabularies_of_several_blocks(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specdec.kernels.tree_rejection.fused.BLOCK", 64)
    check(backend, make_case([6] * len(SETTINGS), 150, SETTINGS, torch.bfloat16, 8), SETTINGS)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_outcome_is_seen(backend: Any) -> None:
    """Walks that stop at once, go on, and fall back on a later child."""
    params = [SamplingParams(temperature=0.9, seed=seed) for seed in range(24)]
    case = make_case([10] * 24, 11, params, torch.float32, 5)
    path, count, _ = check(backend, case, params)
    first = [int((case["parents"][b, :] == 0).int().argmax()) for b in range(24)]
    reached = path[:, 1].tolist()
    assert {1, 2, 3} <= set(count.tolist())
    assert any(node == child for node, child in zip(reached, first, strict=True))
    assert any(node > child for node, child in zip(reached, first, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_children(backend: Any) -> None:
    """A draft that knows nothing of the target: several rejections, each with what the last one left."""
    params = [SamplingParams(temperature=1.5, seed=seed) for seed in range(40)]
    case = make_case([7] * 40, 9, params, torch.float32, 9)
    case["parents"][:, 1:] = 0
    case["tokens"][:] = torch.arange(7, device=DEVICE)
    case["draft_probs"] = torch.randn(40, 7, 9).softmax(-1).to(DEVICE)
    path, _, _ = check(backend, case, params)
    assert {-1, 2, 3, 4} <= set(path[:, 1].tolist())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_draft_that_is_the_target(backend: Any) -> None:
    """Nothing is left of the target but rounding; the first child's chance is one."""
    params = [SamplingParams(temperature=1.0, seed=seed) for seed in range(4)]
    case = make_case([4] * 4, 9, params, torch.float32, 2)
    case["draft_probs"] = case["logits"].softmax(-1)
    _, count, _ = check(backend, case, params)
    assert (count > 1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_children_without_probability_count_as_fixed(backend: Any) -> None:
    params = [SamplingParams(temperature=1.0, seed=seed) for seed in range(12)]
    case = make_case([6] * 12, 8, params, torch.float32, 3)
    case["draft_probs"][:] = 0
    _, count, _ = check(backend, case, params)
    assert {1, 2} <= set(count.tolist())


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_that_are_ruled_out(backend: Any) -> None:
    case = make_case([6] * len(SETTINGS), 60, SETTINGS, torch.float32, 4)
    case["logits"][torch.rand(case["logits"].shape, device=DEVICE) < 0.7] = float("-inf")
    case["logits"][0] = float("-inf")
    case["logits"][1, 0] = float("-inf")
    check(backend, case, SETTINGS)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan(backend: Any) -> None:
    """A row of chances with a NaN accepts nothing; the greatest of logits with a NaN is the first NaN."""
    params = [PLAIN, SamplingParams(), SamplingParams(temperature=0.5, top_k=3, top_p=0.8, min_p=0.1)]
    case = make_case([3] * 3, 6, params, torch.float32, 6)
    case["parents"][:] = torch.tensor([-1, 0, 0], device=DEVICE)
    case["tokens"][:] = torch.tensor([0, 2, 4], device=DEVICE)
    case["logits"][:, 0, 4] = float("nan")
    path, _, next_token = check(backend, case, params)
    assert path.tolist() == [[0, -1, -1], [0, 2, -1], [0, -1, -1]]
    assert next_token[[0, 2]].tolist() == [0, 0]


@given(st.lists(st.integers(0, 7), min_size=1, max_size=3), st.integers(1, 40), st.integers(0, 10_000))
@settings(max_examples=8)
def test_random_batches(sizes: list[int], vocab: int, seed: int) -> None:
    params = [SETTINGS[(seed + 3 * b) % len(SETTINGS)] for b in range(len(sizes))]
    for backend in BACKENDS:
        check(backend, make_case(sizes, vocab, params, torch.float32, seed), params)


@pytest.mark.slow
@pytest.mark.parametrize("backend", TRITON)
def test_large_vocabularies(backend: Any) -> None:
    for seed, vocab in enumerate((5000, 32_000, 50_257, 128_256)):
        check(backend, make_case([9, 0, 16, 5] * 2, vocab, SETTINGS[:8], torch.bfloat16, seed), SETTINGS[:8])


@pytest.mark.parametrize(("backend", "draws"), [("naive", 2000), *((name, 120) for name in TRITON)])
def test_distribution(backend: Any, draws: int) -> None:
    """Two children drawn without replacement from a poor draft: the first token is the target's; false alarm 1e-6."""
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5])
    draft = torch.tensor([0.1, 0.5, 0.3, 0.1])
    params = [SamplingParams(temperature=0.7, seed=seed) for seed in range(draws)]
    chosen = settings_of(params)
    positions = torch.zeros(draws, dtype=torch.int32)
    drawn = noise.gumbel(noise.keys(chosen["seeds"], positions[:, None] + 1, noise.DRAFT_STREAM), 4)[:, 0]
    children = (draft.log() + drawn).topk(2).indices  # [draws, 2]
    case: Any = {
        "tokens": torch.cat([torch.zeros(draws, 1, dtype=torch.int64), children], 1),
        "parents": torch.tensor([-1, 0, 0], dtype=torch.int32).expand(draws, 3),
        "sizes": torch.full((draws,), 3, dtype=torch.int32),
        "logits": logits.expand(draws, 3, 4),
        "draft_probs": draft.expand(draws, 3, 4),
        "positions": positions,
        **chosen,
    }
    case = {name: tensor.to(DEVICE) for name, tensor in case.items()}
    path, _, next_token = tree_rejection(**case, backend=backend)
    went_on = path[:, 1] >= 0
    first = torch.where(went_on, case["tokens"].gather(1, path[:, 1:2].clamp_min(0))[:, 0], next_token)
    assert 0.2 < float(went_on.float().mean()) < 0.95
    assert chi_square(first.bincount(minlength=4).cpu(), (logits.double() / 0.7).softmax(0)) > 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_sequences(backend: Any) -> None:
    case = make_case([3, 2], 5, SETTINGS[:2], torch.float32, 0)
    case = {name: tensor[:, :0] if name == "seeds" else tensor[:0] for name, tensor in case.items()}
    path, count, next_token = tree_rejection(**case, backend=backend)
    assert (path.shape, count.shape, next_token.shape) == ((0, 3), (0,), (0,))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("logits", lambda x: x[0], r"logits must be \[B, N, V\]"),
        ("tokens", lambda x: x[:, :2], r"tokens must have shape \[2, 3\], got \[2, 2\]"),
        ("tokens", lambda x: x.int(), "tokens must be int64, got int32"),
        ("parents", lambda x: x.float(), "parents must be int32 or int64, got float32"),
        ("draft_probs", lambda x: x[..., :4], r"draft_probs must have shape \[2, 3, 5\], got \[2, 3, 4\]"),
        ("draft_probs", lambda x: x.mT.contiguous().mT, "draft_probs must be contiguous in V"),
        ("draft_probs", lambda x: x.to("meta"), "draft_probs must be on the device of logits, .*, got meta"),
        ("seeds", lambda x: x[:1], r"seeds must have shape \[2, 2\], got \[1, 2\]"),
        ("top_p", lambda x: x[:, None], r"top_p must have shape \[2\], got \[2, 1\]"),
    ],
)
def test_bad_arguments_are_named(name: str, change: Any, message: str) -> None:
    case = make_case([3, 2], 5, SETTINGS[:2], torch.float32, 0)
    case[name] = change(case[name])
    with pytest.raises(ValueError, match=message):
        tree_rejection(**case)


def test_an_unknown_backend() -> None:
    case = make_case([3, 2], 5, SETTINGS[:2], torch.float32, 0)
    with pytest.raises(ValueError, match="backend must be auto, naive or triton, got 'cuda'"):
        tree_rejection(**case, backend="cuda")  # type: ignore[arg-type]
