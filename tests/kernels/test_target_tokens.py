"""The target's tokens: torch and Triton against the sampler of the loop.

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

from specdec.kernels.target_tokens import target_tokens
from specdec.sampling import Sampler, SamplingParams

from ..chance import chi_square
from .cases import DEVICE
from .sampling_cases import SETTINGS, settings_of, stable_sort

TRITON = ["triton"] if importlib.util.find_spec("triton") else []
BACKENDS: list[Any] = ["naive", *TRITON]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def arguments(logits: Tensor, sizes: list[int], params: list[SamplingParams], seed: int = 0) -> dict[str, Any]:
    """What `target_tokens` takes: random depths and positions, what is padding poisoned."""
    batch, nodes, _ = logits.shape
    generator = torch.Generator().manual_seed(seed)
    depths = torch.randint(0, 9, (batch, nodes), generator=generator, dtype=torch.int32)
    logits = logits.clone()
    for b, size in enumerate(sizes):
        depths[b, size:] = 2**31 - 1
        logits[b, size:] = float("nan")
    tensors = {
        "logits": logits,
        "positions": torch.randint(0, 5000, (batch,), generator=generator, dtype=torch.int32),
        "depths": depths,
        "sizes": torch.tensor(sizes, dtype=torch.int32),
        **settings_of(params),
    }
    return {name: tensor.to(DEVICE) for name, tensor in tensors.items()}


def expected(case: dict[str, Any], params: list[SamplingParams]) -> Tensor:
    """`[B, N]`: every node's token as `StepSampling.draw` gives it."""
    batch, nodes, vocab = case["logits"].shape
    sampler = Sampler(batch, vocab, DEVICE)
    for slot, chosen in enumerate(params):
        sampler.start(slot, chosen, [])
    step = sampler.at(case["positions"], 10, list(range(batch)))
    drawn: dict[tuple[int, int], list[int]] = {}  # (node, depth) -> tokens of all sequences
    tokens = torch.zeros(batch, nodes, dtype=torch.int64)
    for b in range(batch):
        for j in range(int(case["sizes"][b])):
            depth = int(case["depths"][b, j])
            if (j, depth) not in drawn:
                path = torch.zeros(batch, depth, dtype=torch.int64, device=DEVICE)
                with stable_sort():
                    drawn[j, depth] = step.draw(case["logits"][:, j], depth, path).tolist()
            tokens[b, j] = drawn[j, depth][b]
    return tokens.to(DEVICE)


def random_logits(batch: int, nodes: int, vocab: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(batch, nodes, vocab, generator=generator) * 3).to(dtype)


def check(backend: Any, logits: Tensor, sizes: list[int], params: list[SamplingParams], seed: int = 0) -> None:
    case = arguments(logits, sizes, params, seed)
    tokens = target_tokens(**case, backend=backend)
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == expected(case, params).tolist()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", [1, 7, 129, 1000])
def test_every_mix_of_settings(backend: Any, dtype: torch.dtype, vocab: int) -> None:
    sizes = [2, 0, 3, 1, 2, 1, 3, 2, 2, 1, 2]
    check(backend, random_logits(len(SETTINGS), 3, vocab, dtype), sizes, SETTINGS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("nodes", [2, 24])  # few rows have wide blocks, many have narrow ones
def test_vocabularies_of_several_blocks(backend: Any, nodes: int) -> None:
    sizes = [1, 1, 1, 0, 1, 2, 1, 1, 2, 1, 1]
    check(backend, random_logits(len(SETTINGS), nodes, 9001, torch.bfloat16), sizes, SETTINGS)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties(backend: Any) -> None:
    """Logits of few values: most cuts fall between equals."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randint(-2, 3, (len(SETTINGS), 4, 33), generator=generator).bfloat16()
    logits[:, 1] = 0
    logits[:, 2, ::2] = -0.0
    check(backend, logits, [4] * len(SETTINGS), SETTINGS)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_that_are_ruled_out(backend: Any) -> None:
    logits = random_logits(len(SETTINGS), 4, 70, torch.float32)
    logits[torch.rand(logits.shape, generator=torch.Generator().manual_seed(1)) < 0.8] = float("-inf")
    logits[:, 1] = float("-inf")
    logits[:, 2, 1:] = float("-inf")
    check(backend, logits, [4] * len(SETTINGS), SETTINGS)
    assert not target_tokens(**arguments(logits, [4] * len(SETTINGS), SETTINGS), backend=backend)[:, 1:3].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_nan_is_the_token(backend: Any) -> None:
    logits = random_logits(len(SETTINGS), 2, 300, torch.float32)
    logits[:, 0, [37, 250]] = float("nan")
    logits[:, 1] = float("nan")
    case = arguments(logits, [2] * len(SETTINGS), SETTINGS)
    tokens = target_tokens(**case, backend=backend)
    assert tokens.tolist() == [[37, 0]] * len(SETTINGS)
    assert tokens.tolist() == expected(case, SETTINGS).tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_tensors_that_are_slices(backend: Any) -> None:
    """Rows longer than the vocabulary, settings that are columns of a table."""
    sizes = [2] * len(SETTINGS)
    case = arguments(random_logits(len(SETTINGS), 2, 50, torch.float32), sizes, SETTINGS)
    wanted = target_tokens(**case, backend="naive")
    for name, tensor in case.items():
        wide = torch.full((*tensor.shape, 3), 77, dtype=tensor.dtype, device=DEVICE)
        wide[..., 1] = tensor
        case[name] = wide[..., 1]
    rows = torch.full((len(SETTINGS), 2, 64), float("nan"), device=DEVICE)
    rows[..., :50] = case["logits"]
    case["logits"] = rows[..., :50]
    assert torch.equal(target_tokens(**case, backend=backend), wanted)


def check_random(backend: Any, sizes: list[int], vocab: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def number() -> float:
        return float(torch.rand(1, generator=generator))

    params = [
        SamplingParams(
            temperature=0.1 + 3 * number() if number() < 0.8 else 0.0,
            top_k=int(number() * 2 * vocab) if number() < 0.5 else 0,
            top_p=0.01 + 0.98 * number() if number() < 0.5 else 1.0,
            min_p=number() * 0.5 if number() < 0.3 else 0.0,
            seed=seed + b,
        )
        for b in range(len(sizes))
    ]
    logits = random_logits(len(sizes), max(*sizes, 1), vocab, DTYPES[seed % 3], seed)
    if seed % 4 == 0:
        logits = logits.round()
    check(backend, logits, sizes, params, seed)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=3), st.integers(1, 60), st.integers(0, 10_000))
@settings(max_examples=10)
def test_random_batches(sizes: list[int], vocab: int, seed: int) -> None:
    for backend in BACKENDS:
        check_random(backend, sizes, vocab, seed)


@pytest.mark.slow
@pytest.mark.parametrize("backend", TRITON)
def test_large_vocabularies(backend: Any) -> None:
    for seed, vocab in enumerate((32_000, 50_257, 128_256, 256_000)):
        check_random(backend, [2, 0, 1, 3], vocab, seed)


@pytest.mark.parametrize(("backend", "draws"), [("naive", 20_000), *((name, 150) for name in TRITON)])
def test_distribution(backend: Any, draws: int) -> None:
    """A chain of equal rows draws from the processed distribution; false alarm: 1e-6."""
    logits = torch.tensor([1.0, 0.2, -0.5, 0.9, -3.0, 0.4, 0.4], device=DEVICE)
    case = arguments(logits.cpu().expand(1, draws, 7), [draws], [SamplingParams(temperature=0.8, top_k=6, top_p=0.9)])
    case["depths"] = torch.arange(draws, dtype=torch.int32, device=DEVICE)[None]
    counts = target_tokens(**case, backend=backend)[0].bincount(minlength=7).cpu()
    probs = (logits.double().cpu() / 0.8).softmax(0)
    probs[[2, 4]] = 0  # 4 falls to top-k, 2 to top-p
    assert not counts[[2, 4]].any()
    assert chi_square(counts, probs / probs.sum()) > 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_sequences(backend: Any) -> None:
    case = {name: tensor[..., :0] for name, tensor in settings_of(SETTINGS).items()}
    none = torch.zeros(0, dtype=torch.int32)
    tokens = target_tokens(torch.zeros(0, 3, 5), none, none[:, None].expand(0, 3), none, **case, backend=backend)
    assert tokens.shape == (0, 3)
    assert tokens.dtype == torch.int64


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("logits", lambda x: x[0], r"logits must be \[B, N, V\] with N > 0 and V > 0, got \[2, 5\]"),
        ("logits", lambda x: x[..., :0], "V > 0"),
        ("logits", lambda x: x.int(), "logits must be float16 or bfloat16 or float32 or float64, got int32"),
        ("logits", lambda x: x.mT.contiguous().mT, "logits must be contiguous in V"),
        ("positions", lambda x: x[:2], r"positions must have shape \[3\], got \[2\]"),
        ("depths", lambda x: x[:, :1], r"depths must have shape \[3, 2\], got \[3, 1\]"),
        ("sizes", lambda x: x.float(), "sizes must be int32 or int64, got float32"),
        ("seeds", lambda x: x.T.contiguous(), r"seeds must have shape \[2, 3\]"),
        ("seeds", lambda x: x.long(), "seeds must be int32, got int64"),
        ("temperature", lambda x: x.double(), "temperature must be float32, got float64"),
        ("top_k", lambda x: x.to("meta"), "top_k must be on the device of logits, .*, got meta"),
        ("min_p", lambda x: x[0], r"min_p must have shape \[3\], got \[\]"),
    ],
)
def test_bad_arguments_are_named(name: str, change: Any, message: str) -> None:
    case = arguments(random_logits(3, 2, 5, torch.float32), [2, 1, 0], SETTINGS[:3])
    case[name] = change(case[name])
    with pytest.raises(ValueError, match=message):
        target_tokens(**case)


def test_an_unknown_backend() -> None:
    case = arguments(random_logits(3, 2, 5, torch.float32), [2, 1, 0], SETTINGS[:3])
    with pytest.raises(ValueError, match="backend must be auto, naive or triton, got 'cuda'"):
        target_tokens(**case, backend="cuda")  # type: ignore[arg-type]
