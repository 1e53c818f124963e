"""Every backend against the float64 reference, and what must hold bit for bit."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import specdec.kernels.tree_attention as tree_attention_module
from specdec.kernels.tree_attention import cpp, make_plan, packed, tree_attention

from .cases import DEVICE, Case, check, make_case

NEEDS_COMPILER = pytest.mark.skipif(DEVICE.type != "cpu" or not cpp.available(), reason="a CPU and a C++ compiler")
ON_CPU = ["packed", pytest.param("cpp", marks=NEEDS_COMPILER)]
HOST_BACKENDS = [*ON_CPU, "sdpa"]
BATCHES = {  # contexts, sizes
    "empty context": ([0], [5]),
    "one row": ([70], [1]),
    "page edges": ([63, 64, 65, 127], [2, 1, 3, 4]),
    "word edges": ([10, 0, 3], [63, 64, 65]),
    "deep": ([30, 100], [128, 1]),
    "empty slots": ([0, 20, 0], [0, 7, 0]),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"window": 5},
    "wide window": {"window": 4096},
    "softcap": {"softcap": 2.0},
    "sinks": {"sinks": True},
    "all": {"window": 20, "softcap": 5.0, "sinks": True, "scale": 0.3},
}


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("option", OPTIONS)
def test_cpu_agrees_with_the_maths(backend: str, batch: str, option: str) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        check(make_case(*BATCHES[batch], dtype=dtype, **OPTIONS[option]), backend)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("option", ["plain", "window"])
def test_sdpa_agrees_with_the_maths(batch: str, option: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        check(make_case(*BATCHES[batch], dtype=dtype, **OPTIONS[option]), "sdpa")


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (2, 7), (4, 1), (3, 4)], ids=lambda s: f"heads{s[0]}-group{s[1]}")
@pytest.mark.parametrize("dims", [(32, 32), (64, 64), (80, 80), (128, 128), (48, 32)], ids=str)
def test_head_shapes(backend: str, shape: tuple[int, int], dims: tuple[int, int]) -> None:
    heads, group = shape
    for dtype in (torch.float32, torch.bfloat16):
        case = make_case([40, 3], [9, 1], heads=heads, group=group, dim=dims[0], value_dim=dims[1], dtype=dtype)
        check(case, backend)


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("page", [1, 16, 24, 128, 1024])
def test_page_sizes(backend: str, page: int) -> None:
    for window in (0, 7):
        check(make_case([100, 17], [6, 30], page=page, window=window), backend)


@pytest.mark.parametrize("backend", HOST_BACKENDS)
@pytest.mark.parametrize("window", [0, 3])
def test_fewer_rows_than_nodes(backend: str, window: int) -> None:
    check(make_case([12, 0, 5], [9, 4, 70], rows=[3, 1, 68], window=window), backend)


@pytest.mark.parametrize("backend", HOST_BACKENDS)
@pytest.mark.parametrize("chain", [False, True])
def test_padding_rows_see_the_context_or_give_zero(backend: str, chain: bool) -> None:
    case = make_case([12, 0, 0, 5], [3, 2, 0, 0], rows=[8, 8, 8, 8], chain=chain)
    out = check(case, backend)
    assert (out[8 + 2 : 24] == 0).all()  # no context, no node: nothing to see
    assert (out[24:] != 0).any()


@pytest.mark.parametrize("backend", HOST_BACKENDS)
def test_rows_of_no_sequence_are_zero(backend: str) -> None:
    case = make_case([12], [3], rows=[6])
    case.tensors["row_starts"] = torch.tensor([0, 4], dtype=torch.int32, device=DEVICE)
    assert (case.run(backend)[4:] == 0).all()


@pytest.mark.parametrize("backend", HOST_BACKENDS)
@pytest.mark.parametrize("window", [0, 9, 300])
@pytest.mark.parametrize("lengths", [([0], [200]), ([0, 30], [1, 290]), ([7, 0], [40, 3])], ids=str)
def test_chains_without_words(backend: str, window: int, lengths: tuple[list[int], list[int]]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        check(make_case(*lengths, chain=True, window=window, dtype=dtype), backend)


@pytest.mark.parametrize("backend", HOST_BACKENDS)
def test_windows_about_as_long_as_the_sequence(backend: str) -> None:
    for window in (1, 8, 9, 10):
        check(make_case([5], [4], chain=True, window=window), backend)


@pytest.mark.parametrize("backend", ON_CPU)
def test_chain_words_and_no_words_agree(backend: str) -> None:
    chain = make_case([20, 3], [9, 66], rows=[4, 66], chain=True, window=11)
    words = []
    for size, rows in ((9, 4), (66, 66)):
        for last in range(size - rows, size):
            low, high = (1 << (last + 1)) - 1 & (1 << 64) - 1, ((1 << (last + 1)) - 1) >> 64
            words.append([low - (1 << 64) if low >> 63 else low, high])
    spelled = Case({**chain.tensors, "words": torch.tensor(words, device=DEVICE)}, chain.options)
    torch.testing.assert_close(spelled.run(backend), chain.run(backend), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(spelled.run("naive"), chain.run("naive"), rtol=0, atol=0)


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("option", ["plain", "softcap"])
def test_long_chains_in_blocks_with_options(backend: str, option: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        check(make_case([50], [300], chain=True, dtype=dtype, **OPTIONS[option]), backend)
        check(make_case([50], [300], dtype=dtype, window=40, **OPTIONS[option]), backend)


@pytest.mark.parametrize("backend", ON_CPU)
def test_riders_see_what_no_tree_has(backend: str) -> None:
    for window in (0, 4, 12):
        check(make_case([9, 0, 30], [12, 70, 3], riders=True, window=window), backend)


@pytest.mark.parametrize("pool_dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bit_pools_are_upcast(pool_dtype: torch.dtype) -> None:
    case = make_case([40, 7], [9, 2], dtype=torch.bfloat16, pool_dtype=pool_dtype)
    for name in ("k_pool", "v_pool"):  # the shim of NaN: some 8-bit floats and index_select do not go together
        case.tensors[name] = case.tensors[name].float().nan_to_num(0.0).to(pool_dtype)
    check(case, "packed")


@pytest.mark.parametrize("backend", ON_CPU)
def test_one_plan_serves_every_layer(backend: str) -> None:
    case = make_case([40, 7], [9, 2])
    t = case.tensors
    plan = make_plan(t["block_table"], t["row_starts"], t["context_lens"], t["tree_sizes"], t["words"])
    for window in (0, 6, 0):
        expected = case.run(backend, window=window)
        scale = t["q"].shape[2] ** -0.5
        attend = {"packed": packed, "cpp": cpp}[backend].attend
        assert torch.equal(attend(t["q"], t["k_pool"], t["v_pool"], plan, scale=scale, window=window), expected)


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [0, 6])
def test_fixed_chunks_equal_one_token_decoding(backend: str, dtype: torch.dtype, window: int) -> None:
    """A tree row has the bits of a row whose path was committed and decoded one token at a time, alone."""
    case = make_case([21, 4], [13, 70], dtype=dtype, window=window)
    tree = check(case, backend, fixed_chunks=True)
    t = case.tensors
    for row, b in ((5, 0), (12, 0), (13, 1), (13 + 64, 1)):
        node = row - (0, 13)[b]
        nodes = [i for i in range(node + 1) if t["words"][row, i // 64] >> (i % 64) & 1]
        context, page = int(t["context_lens"][b]), t["k_pool"].shape[2]
        slots = [*range(context), *(context + i for i in nodes)]
        pages = [int(t["block_table"][b, s // page]) for s in slots]
        pools = [t[x][pages, :, [s % page for s in slots]].transpose(0, 1)[None] for x in ("k_pool", "v_pool")]
        one = {"row_starts": [0, 1], "context_lens": [len(slots) - 1], "tree_sizes": [1], "block_table": [[0]]}
        tensors = {k: torch.tensor(v, dtype=torch.int32) for k, v in one.items()}
        tensors |= {"q": t["q"][row : row + 1], "k_pool": pools[0], "v_pool": pools[1], "words": torch.tensor([[1]])}
        alone = Case(tensors, case.options).run(backend, fixed_chunks=True)
        assert torch.equal(alone[0], tree[row])


@st.composite
def batches(draw: st.DrawFn) -> Case:
    """Any batch: lengths, pages, heads, windows, row counts."""
    count = draw(st.integers(1, 3))
    contexts = draw(st.lists(st.integers(0, 70), min_size=count, max_size=count))
    sizes = draw(st.lists(st.integers(0, 20) | st.integers(60, 70), min_size=count, max_size=count))
    rows = [draw(st.sampled_from([size, max(size - 2, 0), size + 2])) for size in sizes]
    return make_case(
        contexts, sizes, rows=rows, heads=draw(st.integers(1, 3)), group=draw(st.sampled_from([1, 2, 3, 7])), dim=16,
        page=draw(st.sampled_from([1, 8, 16, 64, 100])), chain=draw(st.booleans()), riders=draw(st.booleans()),
        sinks=draw(st.booleans()), window=draw(st.sampled_from([0, 0, 1, 2, 9, 64, 500])),
        softcap=draw(st.sampled_from([0.0, 3.0])), seed=draw(st.integers(0, 1000)),
        dtype=draw(st.sampled_from([torch.float32, torch.bfloat16])),
    )  # fmt: skip


@given(batches())
@settings(max_examples=60)
def test_packed_on_random_batches(case: Case) -> None:
    check(case, "packed")


@NEEDS_COMPILER
@given(batches(), st.booleans())
@settings(max_examples=60)
def test_cpp_on_random_batches(case: Case, fixed: bool) -> None:
    check(case.with_options(softcap=0.0), "cpp", fixed_chunks=fixed)


@NEEDS_COMPILER
@given(batches())
@settings(max_examples=30)
def test_a_row_has_its_bits_in_any_company(case: Case) -> None:
    """Alone, without the other sequences, and with as many threads as there are."""
    case = case.with_options(softcap=0.0)
    together = case.run("cpp", fixed_chunks=True)
    starts = case.tensors["row_starts"].tolist()
    for b, (first, end) in enumerate(pairwise(starts)):
        part = {"q": case.tensors["q"][first:end], "row_starts": torch.tensor([0, end - first], dtype=torch.int32)}
        part |= {name: case.tensors[name][b : b + 1] for name in ("block_table", "context_lens", "tree_sizes")}
        part["words"] = None if case.tensors["words"] is None else case.tensors["words"][first:end]
        assert torch.equal(
            Case({**case.tensors, **part}, case.options).run("cpp", fixed_chunks=True), together[first:end]
        )
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(case.run("cpp", fixed_chunks=True), together)
    finally:
        torch.set_num_threads(before)


@NEEDS_COMPILER
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_new_rows_are_written_first(dtype: torch.dtype) -> None:
    """As the compiled passes do it: the keys and values of the rows themselves come with them."""
    case = make_case([20, 0], [5, 3], page=16, dtype=dtype)
    t, expected = case.tensors, case.run("cpp")
    plan = make_plan(t["block_table"], t["row_starts"], t["context_lens"], t["tree_sizes"], t["words"])
    written = torch.tensor([
        (row, int(t["block_table"][b, (context + j) // 16]), (context + j) % 16)
        for b, context, first, size in ((0, 20, 0, 5), (1, 0, 5, 3))
        for j, row in enumerate(range(first, first + size))
    ])  # fmt: skip
    row, page, place = written.unbind(1)
    new = [torch.empty(8, *t[name].shape[1::2], dtype=dtype) for name in ("k_pool", "v_pool")]
    for rows, name in zip(new, ("k_pool", "v_pool"), strict=True):
        rows[row] = t[name][page, :, place]
        t[name][page, :, place] = torch.nan
    out = cpp.attend(
        t["q"],
        t["k_pool"],
        t["v_pool"],
        plan,
        scale=t["q"].shape[2] ** -0.5,
        new_k=new[0],
        new_v=new[1],
        written=written,
    )
    assert torch.equal(out, expected)
    assert torch.equal(t["k_pool"][page, :, place], new[0][row])
    assert torch.equal(t["v_pool"][page, :, place], new[1][row])


@NEEDS_COMPILER
def test_rows_of_another_dtype_and_a_plan_used_again() -> None:
    """What is written belongs to a call, not to the plan; rows are converted as a copy would."""
    case = make_case([20], [3], page=64, dtype=torch.bfloat16)
    t = case.tensors
    plan = make_plan(t["block_table"], t["row_starts"], t["context_lens"], t["tree_sizes"], t["words"])
    page = int(t["block_table"][0, 0])
    for place in (20, 22):
        new = torch.full((3, t["k_pool"].shape[1], t["k_pool"].shape[3]), float(place))
        written = torch.tensor([[1, page, place]])
        cpp.attend(t["q"], t["k_pool"], t["v_pool"], plan, scale=1.0, new_k=new, new_v=new, written=written)
        assert (t["k_pool"][page, :, place] == place).all()
        assert (t["v_pool"][page, :, place] == place).all()
    cpp.attend(t["q"], t["k_pool"], t["v_pool"], plan, scale=1.0)


@pytest.mark.parametrize("backend", ON_CPU)
def test_tables_of_64_bits_and_odd_strides(backend: str) -> None:
    case = make_case([40, 7], [9, 2], page=16)
    expected, t = case.run(backend), case.tensors
    t["block_table"] = t["block_table"].long()
    assert torch.equal(case.run(backend), expected)
    for name in ("k_pool", "v_pool"):
        t[name] = t[name].transpose(2, 3).contiguous().transpose(2, 3)
    torch.testing.assert_close(case.run(backend), expected, atol=1e-5, rtol=1e-5)
    t["q"] = t["q"].transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(case.run(backend), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ON_CPU)
def test_gradients_are_not_lost(backend: str) -> None:
    case = make_case([5], [3])
    case.tensors["q"].requires_grad_()
    assert case.run(backend).requires_grad


@NEEDS_COMPILER
def test_nan_is_handed_on_and_nothing_else_is_touched() -> None:
    case = make_case([70, 70], [3, 3], dtype=torch.float32)
    before = case.run("cpp")
    case.tensors["q"][4, 1, 2] = torch.nan
    after = case.run("cpp")
    assert after[4, 1].isnan().all()
    after[4, 1] = before[4, 1]
    assert torch.equal(after, before)


@NEEDS_COMPILER
def test_large_and_tiny_scores() -> None:
    for scale in (1e-30, 1.0, 200.0):
        check(make_case([100, 3], [5, 9], dtype=torch.float32, scale=scale), "cpp")


@given(batches())
@settings(max_examples=20)
def test_sdpa_on_random_batches(case: Case) -> None:
    check(Case(case.tensors, {"window": case.options["window"]}), "sdpa")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "q head size": ({"q": torch.zeros(4, 4, 16)}, "q must have k_pool's head size 32, got 16"),
    "q heads": ({"q": torch.zeros(4, 3, 32)}, "multiple of k_pool's 2 heads, got 3"),
    "pool dtype": ({"k_pool": torch.zeros(3, 2, 64, 32).half(), "v_pool": torch.zeros(3, 2, 64, 32).half()}, "k_pool"),
    "values": ({"v_pool": torch.zeros(3, 2, 32, 32)}, "v_pool must have k_pool's pages"),
    "lengths": ({"context_lens": torch.zeros(2, dtype=torch.int32)}, r"context_lens must have shape \[1\]"),
    "length dtype": ({"tree_sizes": torch.zeros(1)}, "tree_sizes must be int32"),
    "words dtype": ({"words": torch.zeros(4, 1, dtype=torch.int32)}, "words must be int64"),
    "words rows": ({"words": torch.zeros(3, 1, dtype=torch.int64)}, "words must have shape"),
    "narrow words": ({"words": torch.zeros(4, 0, dtype=torch.int64)}, r"words hold 0 nodes a row, but tree_sizes\[0\]"),
    "dead bits": ({"words": torch.full((4, 1), 1 << 4)}, "bits at or past its 4 nodes"),
    "wide dead bits": ({"words": torch.tensor([[1, 1]] * 4)}, "bits at or past its 4 nodes"),
    "hole": ({"block_table": torch.tensor([[0, -1]], dtype=torch.int32)}, r"block_table\[0, 1\] is -1, a hole"),
    "short table": ({"block_table": torch.tensor([[0]], dtype=torch.int32)}, "needs 84 slots"),
    "rows": ({"row_starts": torch.tensor([0, 9], dtype=torch.int32)}, "row_starts must rise"),
    "window": ({"window": -1}, "window must be 0"),
    "sinks": ({"sinks": torch.zeros(3)}, r"sinks must have shape \[4\]"),
    "backend": ({"backend": "cudnn"}, "backend must be one of auto, naive, .*, flash_attn, got 'cudnn'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_named(name: str) -> None:
    change, message = REFUSED[name]
    case = make_case([80], [4])
    moved = {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in change.items()}
    with pytest.raises(ValueError, match=message):
        tree_attention(**{**case.tensors, **moved})
    if name != "backend":
        tree_attention(**case.tensors)


def test_sdpa_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="softcap"):
        make_case([80], [4], softcap=2.0).run("sdpa")
    with pytest.raises(ValueError, match="fixed_chunks needs backend"):
        make_case([80], [4]).run("sdpa", fixed_chunks=True)


def test_import_leaves_optional_packages_alone() -> None:
    folder = Path(tree_attention_module.__file__).parents[1]
    code = f"""
import sys, types
for name, path in (("specdec", "specdec"), ("specdec.kernels", {str(folder)!r})):
    sys.modules[name] = types.ModuleType(name)  # without what the rest of the library imports
    sys.modules[name].__path__ = [path]
import specdec.kernels.tree_attention
for name in ("triton", "flash_attn", "torch.nn.attention.varlen"):
    assert name not in sys.modules, name
"""
    subprocess.run([sys.executable, "-c", code], check=True)
