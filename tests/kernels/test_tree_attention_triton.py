"""The Triton tree attention against the float64 reference, and its promises about bits. Interpreted without a GPU."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from .cases import DEVICE, Case, make_case
from .cases import check as check_against_float64

pytest.importorskip("triton")

from specdec.kernels.tree_attention.launch import Config, Workspace, tree_attention_fused

SMALL = Config(16, 32, 4, 2, chunk=32, fixed=False)  # chunks of 32 slots: short contexts are split, too
FIXED = replace(SMALL, fixed=True, block_m=32)


def run(case: Case, config: Config | None = SMALL, **more: Any) -> torch.Tensor:
    arguments = {**case.tensors, "scale": case.tensors["q"].shape[2] ** -0.5, **case.options, **more}
    return tree_attention_fused(**arguments, config=config)


def check(case: Case, config: Config | None = SMALL) -> torch.Tensor:
    return check_against_float64(case, lambda: run(case, config))


BATCHES = {  # contexts, sizes, rows: the newest nodes alone, every row costs the interpreter time
    "empty context": ([0], [5], [5]),
    "page edges": ([63, 64, 65], [2, 1, 3], [2, 1, 3]),
    "word edges": ([10, 0], [63, 64], [3, 9]),
    "two words, chunk edges inside the tree": ([21], [70], [12]),
    "deep": ([30], [128], [5]),
    "three words": ([5], [129], [5]),
    "empty slots": ([0, 20, 0], [0, 7, 0], [0, 7, 0]),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"window": 5},
    "wide window": {"window": 70},
    "all": {"window": 20, "softcap": 5.0, "sinks": True, "scale": 0.3},
}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("option", OPTIONS)
def test_agrees_with_the_maths(batch: str, option: str) -> None:
    contexts, sizes, rows = BATCHES[batch]
    check(make_case(contexts, sizes, rows=rows, heads=1, dim=16, **OPTIONS[option]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("option", OPTIONS)
def test_low_precision(dtype: torch.dtype, option: str) -> None:
    check(make_case([70, 3], [9, 17], heads=1, dtype=dtype, **OPTIONS[option]))


@pytest.mark.parametrize("config", [None, replace(SMALL, block_n=64, chunk=64)], ids=["chosen", "word-wide tiles"])
def test_tile_sizes(config: Config | None) -> None:
    for contexts, sizes, rows in (([100, 0], [66, 1], [4, 1]), ([63], [65], [12])):
        for window in (0, 9):
            case = make_case(contexts, sizes, rows=rows, heads=1, dim=16, dtype=torch.bfloat16, window=window)
            check(case, config)


@pytest.mark.parametrize("shape", [(2, 1), (1, 4), (2, 7), (1, 8)], ids=lambda s: f"heads{s[0]}-group{s[1]}")
def test_groups(shape: tuple[int, int]) -> None:
    check(make_case([40, 3], [5, 1], heads=shape[0], group=shape[1], dim=16))


@pytest.mark.parametrize("dims", [(64, 64), (80, 80), (112, 96), (128, 128), (48, 32), (8, 8)], ids=str)
def test_head_sizes(dims: tuple[int, int]) -> None:
    check(make_case([40], [5], heads=2, group=1, dim=dims[0], value_dim=dims[1]))


@pytest.mark.parametrize("page", [1, 16, 24, 128])
def test_page_sizes(page: int) -> None:
    check(make_case([60, 17], [6, 30], rows=[6, 2], heads=1, dim=16, page=page))


def test_fewer_rows_than_nodes() -> None:
    for window in (0, 3):
        check(make_case([12, 0, 5], [9, 4, 70], rows=[3, 1, 4], heads=1, dim=16, window=window))


@pytest.mark.parametrize("chain", [False, True], ids=["tree", "chain"])
def test_padding_rows_see_the_context_or_give_zero(chain: bool) -> None:
    case = make_case([12, 0, 0, 5], [3, 2, 0, 0], rows=[4, 4, 4, 4], heads=1, dim=16, chain=chain)
    out = check(case)
    assert (out[4 + 2 : 12] == 0).all()  # no context, no node: nothing to see
    assert (out[12:] != 0).any()


def test_rows_of_no_sequence_are_zero() -> None:
    case = make_case([12], [3], rows=[6], heads=1, dim=16)
    case.tensors["row_starts"] = torch.tensor([0, 4], dtype=torch.int32, device=DEVICE)
    assert (run(case)[4:] == 0).all()


@pytest.mark.parametrize("config", [SMALL, FIXED], ids=["balanced", "fixed"])
def test_no_slot_is_taken(config: Config) -> None:
    """Rows of a batch in which all caches and trees are empty: nothing to see, whatever lies in the pool."""
    case = make_case([0, 0, 0], [0, 0, 0], rows=[0, 0, 0], heads=1, dim=16)
    case.tensors["q"] = torch.randn(5, 2, 16, device=DEVICE)
    case.tensors["words"] = torch.full((5, 1), -1, device=DEVICE)
    assert (run(case, config) == 0).all()
    case.tensors["row_starts"][1:] = torch.tensor([2, 2, 4])
    case.tensors["words"].zero_()
    assert (run(case, config) == 0).all()


@pytest.mark.parametrize("option", OPTIONS)
def test_words_wider_than_any_tree(option: str) -> None:
    """As fixed buffers have them. What they hold past a tree is 0."""
    case = make_case([40, 3, 0], [5, 64, 2], rows=[5, 6, 2], heads=1, dim=16, **OPTIONS[option])
    words = case.tensors["words"]
    for width in (2, 3, 5):
        wide = torch.cat([words, words.new_zeros(len(words), width - 1)], 1)
        check(Case({**case.tensors, "words": wide}, case.options))


def test_nan_in_padding_rows_stays_there() -> None:
    case = make_case([40], [3], rows=[6], heads=1, dim=16)
    clean = run(case)
    case.tensors["q"][3:] = float("nan")
    assert torch.equal(run(case)[:3], clean[:3])


@pytest.mark.parametrize("window", [0, 9, 300])
def test_chains_without_words(window: int) -> None:
    for lengths, rows in ((([0, 30], [1, 70]), [1, 14]), (([7, 40], [20, 5]), [3, 5])):
        check(make_case(*lengths, rows=rows, heads=1, dim=16, chain=True, window=window))


def test_windows_about_as_long_as_the_sequence() -> None:
    for window in (1, 8, 9, 10):
        check(make_case([5], [4], heads=1, dim=16, chain=True, window=window))


def test_riders_see_what_no_tree_has() -> None:
    for window in (0, 4):
        check(make_case([9, 30], [12, 70], rows=[12, 5], riders=True, heads=1, dim=16, window=window))


@pytest.mark.parametrize("pool_dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bit_pools_are_upcast(pool_dtype: torch.dtype) -> None:
    case = make_case([40, 7], [9, 2], heads=1, dim=16, dtype=torch.bfloat16, pool_dtype=pool_dtype)
    check(case)


def chain_words(size: int) -> torch.Tensor:
    """`[size, 1]` int64, for at most 63 nodes."""
    return torch.tensor([[(1 << (j + 1)) - 1] for j in range(size)], device=DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [0, 40])
def test_fixed_chunks_ignore_the_batch(dtype: torch.dtype, window: int) -> None:
    """A sequence has the same bits alone and between others."""
    case = make_case([70, 0, 33], [9, 2, 5], heads=1, dim=16, dtype=dtype, window=window)
    together = run(case, FIXED)
    starts = case.tensors["row_starts"].tolist()
    for b in range(3):
        rows = slice(starts[b], starts[b + 1])
        part = {name: case.tensors[name][b : b + 1] for name in ("block_table", "context_lens", "tree_sizes")}
        part |= {name: case.tensors[name][rows] for name in ("q", "words")}
        part["row_starts"] = torch.tensor([0, starts[b + 1] - starts[b]], dtype=torch.int32, device=DEVICE)
        alone = run(Case({**case.tensors, **part}, case.options), FIXED)
        assert torch.equal(alone, together[rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [0, 40])
def test_fixed_chunks_make_chains_equal_decoding(dtype: torch.dtype, window: int) -> None:
    """Row t of a chain has the bits of decoding token t alone, with the others committed, across chunk edges."""
    case = make_case([60], [9], heads=1, dim=16, dtype=dtype, window=window)
    case.tensors["words"] = chain_words(9)
    whole = run(case, FIXED)
    for t in (0, 3, 4, 8):
        one = {"context_lens": [60 + t], "tree_sizes": [1], "row_starts": [0, 1]}
        tensors = {k: torch.tensor(v, dtype=torch.int32, device=DEVICE) for k, v in one.items()}
        tensors |= {"q": case.tensors["q"][t : t + 1], "words": chain_words(1)}
        alone = run(Case({**case.tensors, **tensors}, case.options), FIXED)
        assert torch.equal(alone[0], whole[t])


def test_workspace_serves_every_layer_of_a_step_and_the_next_step() -> None:
    workspace = Workspace()
    case, other = (make_case([c], [5], heads=1, dim=16, seed=c) for c in (70, 33))
    for step in (case, other):
        workspace.begin()
        for window in (0, 6, 0):
            expected = run(step, window=window)
            assert torch.equal(run(step, window=window, workspace=workspace), expected)


def test_workspace_serves_layers_of_different_shapes() -> None:
    """Layers that differ in heads, groups and head sizes, and so in tiles and plans, take turns."""
    workspace = Workspace()
    layers = [
        (make_case([70, 9], [5, 8], heads=1, group=2, dim=16), SMALL),
        (make_case([70, 9], [5, 8], heads=2, group=2, dim=16, value_dim=32), replace(SMALL, block_m=32, chunk=64)),
        (make_case([70, 9], [5, 8], heads=1, group=2, dim=48), SMALL),
        (make_case([70, 9], [5, 8], heads=1, group=4, dim=16), SMALL),
    ]
    alone = [run(case, config) for case, config in layers]
    for _ in range(2):
        workspace.begin()
        together = [run(case, config, workspace=workspace) for case, config in layers]
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="head sizes up to 256, got 264"):
        run(make_case([4], [2], heads=1, group=1, dim=264))
    with pytest.raises(ValueError, match="no float64"):
        run(make_case([4], [2], dtype=torch.float64))
    strided = make_case([4], [2], heads=1, dim=16)
    strided.tensors["q"] = strided.tensors["q"].transpose(1, 2).contiguous().transpose(1, 2)
    with pytest.raises(ValueError, match="q must be contiguous in its last dimension"):
        run(strided)


@st.composite
def batches(draw: st.DrawFn) -> Case:
    """Any small batch: lengths, pages, heads, windows, row counts."""
    count = draw(st.integers(1, 3))
    contexts = draw(st.lists(st.integers(0, 70), min_size=count, max_size=count))
    sizes = draw(st.lists(st.integers(0, 12) | st.integers(60, 70), min_size=count, max_size=count))
    rows = [draw(st.sampled_from([min(size, 9), max(size - 60, 0), min(size, 9) + 2])) for size in sizes]
    return make_case(
        contexts, sizes, rows=rows, heads=draw(st.integers(1, 2)), group=draw(st.sampled_from([1, 2, 3])), dim=16,
        page=draw(st.sampled_from([1, 16, 64, 100])), chain=draw(st.booleans()), riders=draw(st.booleans()),
        sinks=draw(st.booleans()), window=draw(st.sampled_from([0, 0, 1, 2, 9, 64, 500])),
        softcap=draw(st.sampled_from([0.0, 3.0])), seed=draw(st.integers(0, 1000)),
    )  # fmt: skip


@given(batches(), st.sampled_from([SMALL, FIXED, replace(SMALL, block_n=64, chunk=64)]))
@settings(max_examples=15)
def test_random_batches(case: Case, config: Config) -> None:
    check(case, config)


@pytest.mark.slow
@given(batches(), st.sampled_from([SMALL, FIXED, replace(SMALL, block_n=64, chunk=64)]))
@settings(max_examples=600)
def test_many_random_batches(case: Case, config: Config) -> None:
    check(case, config)
