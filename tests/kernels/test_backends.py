"""The backends that wrap somebody else's kernel: FlexAttention for real, the CUDA-only ones through fakes."""

import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import specdec.kernels.tree_attention as tree_attention_module
from specdec.attention import choose_backend
from specdec.kernels.tree_attention import Plan, chains, flash_attn, flex, make_plan, varlen
from specdec.kernels.tree_attention.naive import tree_attention_naive

from .cases import DEVICE, Case, check, make_case

on_cpu = pytest.mark.skipif(DEVICE.type != "cpu", reason="the fakes stand in for packages that a GPU may have")
BATCHES = {  # contexts, sizes
    "empty context": ([0], [5]),
    "page edges": ([63, 64, 65, 127], [2, 1, 3, 4]),
    "word edges": ([10, 0, 3], [63, 64, 65]),
    "row blocks": ([30, 100], [140, 1]),
    "empty slots": ([0, 20, 0], [0, 7, 0]),
    "nothing": ([0, 0], [0, 0]),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"window": 5},
    "softcap": {"softcap": 2.0},
    "sinks": {"sinks": True},
    "all": {"window": 20, "softcap": 5.0, "sinks": True, "scale": 0.3},
}


@pytest.fixture
def plain_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention's own maths without a trip through dynamo, which takes half a second for each new shape."""
    module = "torch.nn.attention.flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"
    monkeypatch.setattr(module, DEVICE.type == "cpu")


@pytest.mark.usefixtures("plain_flex")
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("option", OPTIONS)
def test_flex_agrees_with_the_maths(batch: str, option: str) -> None:
    dtypes = (torch.float64, torch.float32, torch.bfloat16) if DEVICE.type == "cpu" else (torch.bfloat16,)
    for dtype in dtypes:
        check(make_case(*BATCHES[batch], dtype=dtype, **OPTIONS[option]), "flex")


@pytest.mark.usefixtures("plain_flex")
@pytest.mark.parametrize("window", [0, 3, 9, 300])
def test_flex_on_chains_padding_and_riders(window: int) -> None:
    check(make_case([0, 30, 7], [200, 1, 40], chain=True, window=window), "flex")
    check(make_case([12, 0, 0, 5], [3, 2, 0, 0], rows=[8, 8, 8, 8], chain=True, window=window), "flex")
    out = check(make_case([12, 0, 0, 5], [3, 2, 0, 0], rows=[8, 8, 8, 8], window=window), "flex")
    assert (out[8 + 2 : 24] == 0).all()
    check(make_case([12, 0, 5], [9, 4, 70], rows=[3, 1, 68], riders=True, window=window), "flex")


@pytest.mark.usefixtures("plain_flex")
def test_flex_on_heads_pages_and_eight_bits() -> None:
    check(make_case([40, 3], [9, 1], heads=1, group=7, dim=48, value_dim=32, page=24), "flex")
    case = make_case([40, 7], [9, 2], dtype=torch.bfloat16, pool_dtype=torch.float8_e4m3fn)
    for name in ("k_pool", "v_pool"):  # what float8 makes of NaN is no NaN everywhere
        case.tensors[name] = case.tensors[name].float().nan_to_num(0.0).to(torch.float8_e4m3fn)
    check(case, "flex")


def dense(case: Case) -> Case:
    """The same batch as a dense cache: one page a sequence, in order."""
    t = dict(case.tensors)
    lengths = (t["context_lens"] + t["tree_sizes"]).tolist()
    for name in ("k_pool", "v_pool"):
        pages = []
        for b, length in enumerate(lengths):
            used = t[name][t["block_table"][b, : -(-length // t[name].shape[2])].long()]
            pages.append(used.transpose(0, 1).flatten(1, 2))
        t[name] = torch.stack([page[:, : max(lengths)] for page in pages])
    t["block_table"] = torch.arange(len(lengths), dtype=torch.int32, device=DEVICE)[:, None]
    return Case(t, case.options)


@pytest.mark.usefixtures("plain_flex")
def test_flex_reads_an_even_dense_cache_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    real = flex.attend_dense

    def spy(q: Tensor, k: Tensor, *rest: Any, **settings: Any) -> Tensor:
        seen.append(k)
        return real(q, k, *rest, **settings)

    monkeypatch.setattr(flex, "attend_dense", spy)
    even, ragged = dense(make_case([40, 37], [4, 7])), dense(make_case([40, 30], [4, 7]))
    ragged.tensors["k_pool"][1, :, 37:] = ragged.tensors["v_pool"][1, :, 37:] = float("nan")
    for case, shared in ((even, True), (ragged, False)):
        check(case, "flex")
        assert (seen[-1].data_ptr() == case.tensors["k_pool"].data_ptr()) == shared


def test_flex_through_torchs_own_front() -> None:
    check(make_case([70, 3], [9, 1], sinks=True, window=30), "flex")


@pytest.mark.slow
@pytest.mark.parametrize("chain", [False, True])
def test_flex_compiled_for_one_shape(chain: bool) -> None:
    case = make_case([130, 3], [9, 5], chain=chain, window=50)
    t = case.tensors
    plan = make_plan(t["block_table"], t["row_starts"], t["context_lens"], t["tree_sizes"], t["words"])
    mask = flex.make_mask(plan, 50)
    k, v = (flex._dense(t[name], plan, mask.slots) for name in ("k_pool", "v_pool"))
    out = torch.empty_like(t["q"])
    out[mask.rows[mask.live]] = flex.attend_dense(
        t["q"][mask.rows].transpose(1, 2), k, v, mask, scale=32**-0.5, attention=flex.compiled(DEVICE)
    ).transpose(1, 2)[mask.live]
    check(case, lambda: out)


class Recorder:
    """Calls that a fake package got."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def causal(self, q: Tensor, k: Tensor, v: Tensor, length: int, scale: float, window: Any, cap: float) -> Tensor:
        """FlashAttention's own rule: the last of q's rows `[M, Hq, D]` sees the last of `length` keys.

        k and v are `[slots, Hkv, D]`.
        """
        left, right = window
        assert right == 0, "causal"
        one = torch.tensor([0], dtype=torch.int32)
        keys, values = (x[:length].transpose(0, 1)[None] for x in (k, v))  # one page
        starts = torch.tensor([0, len(q)], dtype=torch.int32)
        size = torch.tensor([min(len(q), length)], dtype=torch.int32)
        context = torch.tensor([length], dtype=torch.int32) - size
        return tree_attention_naive(
            q, keys, values, one[:, None], starts, context, size, None, scale=scale, window=left + 1, softcap=cap
        )

    def packed(
        self, q: Tensor, k: Tensor, v: Tensor, q_starts: Tensor, k_starts: Tensor, scale: float, window: Any, cap: float
    ) -> Tensor:
        """Keys one behind the other."""
        assert q_starts.dtype == k_starts.dtype == torch.int32
        out = torch.full_like(q, float("nan"))
        for i in range(len(q_starts) - 1):
            rows = slice(int(q_starts[i]), int(q_starts[i + 1]))
            slots = slice(int(k_starts[i]), int(k_starts[i + 1]))
            length = slots.stop - slots.start
            out[rows] = self.causal(q[rows], k[slots], v[slots], length, scale, window, cap)
        return out

    def paged(
        self, q: Tensor, k: Tensor, v: Tensor, starts: Tensor, lengths: Tensor, table: Tensor, scale: float,
        window: Any, cap: float,
    ) -> Tensor:  # fmt: skip
        """Keys `[pages, page, Hkv, D]`."""
        assert table.dtype == lengths.dtype == torch.int32
        out = torch.full_like(q, float("nan"))
        for i, length in enumerate(lengths.tolist()):
            used = table[i, : -(-length // k.shape[1])].long()
            rows = slice(int(starts[i]), int(starts[i + 1]))
            keys, values = k[used].flatten(0, 1), v[used].flatten(0, 1)
            out[rows] = self.causal(q[rows], keys, values, length, scale, window, cap)
        return out


@pytest.fixture
def cuda_is_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(chains, "_DEVICE", "cpu")
    varlen.parameters.cache_clear()
    yield
    varlen.parameters.cache_clear()


@pytest.fixture
def new_varlen(monkeypatch: pytest.MonkeyPatch, cuda_is_cpu: None) -> Recorder:
    """`varlen_attn` as torch 2.12 and 2.13 have it."""
    recorder = Recorder()

    def varlen_attn(
        query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
        scale: float | None = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
        seqused_k: Tensor | None = None, block_table: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        heads = key.shape[-2]
        assert enable_gqa == (heads != query.shape[1])
        assert max_q == int(cu_seq_q.diff().max())
        assert scale is not None
        recorder.calls.append(("pages" if block_table is not None else "packed", {"max_k": max_k}))
        if block_table is None:
            assert max_k == int(cu_seq_k.diff().max())
            return recorder.packed(query, key, value, cu_seq_q, cu_seq_k, scale, window_size, 0.0)
        assert seqused_k is not None
        assert max_k == int(seqused_k.max())
        return recorder.paged(query, key, value, cu_seq_q, seqused_k, block_table, scale, window_size, 0.0)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    return recorder


@pytest.fixture
def old_varlen(monkeypatch: pytest.MonkeyPatch, cuda_is_cpu: None) -> Recorder:
    """`varlen_attn` as torch 2.11 has it: no block table, no grouped heads."""
    recorder = Recorder()

    def varlen_attn(
        query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
        scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
    ) -> Tensor:  # fmt: skip
        assert key.shape[1] == query.shape[1]
        assert scale is not None
        recorder.calls.append(("packed", {}))
        return recorder.packed(query, key, value, cu_seq_q, cu_seq_k, scale, window_size, 0.0)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    return recorder


@pytest.fixture
def fake_flash_attn(monkeypatch: pytest.MonkeyPatch, cuda_is_cpu: None) -> Recorder:
    recorder = Recorder()

    def flash_attn_varlen_func(
        q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
        max_seqlen_k: int, softmax_scale: float, causal: bool, window_size: tuple[int, int], softcap: float,
    ) -> Tensor:  # fmt: skip
        assert causal
        assert max_seqlen_q == int(cu_seqlens_q.diff().max())
        assert max_seqlen_k == int(cu_seqlens_k.diff().max())
        recorder.calls.append(("packed", {}))
        return recorder.packed(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, window_size, softcap)

    def flash_attn_with_kvcache(
        q: Tensor, k_cache: Tensor, v_cache: Tensor, *, cache_seqlens: Tensor, softmax_scale: float, causal: bool,
        window_size: tuple[int, int], softcap: float, cache_batch_idx: Tensor | None = None,
        block_table: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        assert causal
        batch, rows = q.shape[:2]
        starts = torch.arange(batch + 1, dtype=torch.int32) * rows
        recorder.calls.append(("dense" if block_table is None else "pages", {}))
        table = cache_batch_idx[:, None] if cache_batch_idx is not None else block_table
        assert table is not None
        flat = q.flatten(0, 1)
        done = recorder.paged(flat, k_cache, v_cache, starts, cache_seqlens, table, softmax_scale, window_size, softcap)
        return done.view(batch, rows, *done.shape[1:])

    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    module.flash_attn_with_kvcache = flash_attn_with_kvcache  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    return recorder


CHAINS: dict[str, dict[str, Any]] = {
    "prompts": {"contexts": [0, 0], "sizes": [70, 3]},
    "further prompt": {"contexts": [65, 0, 128], "sizes": [64, 1, 0]},
    "newest rows": {"contexts": [12, 5], "sizes": [9, 70], "rows": [3, 68]},
    "padding": {"contexts": [12, 0, 0, 5], "sizes": [3, 2, 0, 0], "rows": [8, 8, 8, 8]},
    "nothing": {"contexts": [0], "sizes": [0]},
    "even rows": {"contexts": [300, 7, 255], "sizes": [4, 4, 4]},
}


@on_cpu
@pytest.mark.parametrize("fake", ["new_varlen", "old_varlen", "fake_flash_attn"])
@pytest.mark.parametrize("page", [64, 256, 1024])
@pytest.mark.parametrize("window", [0, 1, 6])
def test_chains_through_the_kernels_of_others(
    fake: str, page: int, window: int, request: pytest.FixtureRequest
) -> None:
    recorder: Recorder = request.getfixturevalue(fake)
    backend = "flash_attn" if fake == "fake_flash_attn" else "varlen"
    for name, shape in CHAINS.items():
        case = make_case(**shape, chain=True, window=window, page=page, dtype=torch.bfloat16, scale=0.2)
        check(case, backend)
        if name == "nothing":
            continue
        how = recorder.calls[-1][0]
        if fake == "old_varlen" or page == 64:
            assert how == "packed"
        elif fake == "new_varlen":
            assert how == "pages"
        else:
            assert how == ("packed" if name != "even rows" else "dense" if page == 1024 else "pages")


@on_cpu
@pytest.mark.parametrize("fake", ["new_varlen", "old_varlen", "fake_flash_attn"])
def test_chains_from_eight_bit_pools_are_packed(fake: str, request: pytest.FixtureRequest) -> None:
    recorder: Recorder = request.getfixturevalue(fake)
    case = make_case([40, 7], [2, 2], page=256, chain=True, dtype=torch.bfloat16, pool_dtype=torch.float8_e4m3fn)
    for name in ("k_pool", "v_pool"):
        case.tensors[name] = case.tensors[name].float().nan_to_num(0.0).to(torch.float8_e4m3fn)
    check(case, "flash_attn" if fake == "fake_flash_attn" else "varlen")
    assert recorder.calls[-1][0] == "packed"


@on_cpu
def test_flash_attn_caps_scores(fake_flash_attn: Recorder) -> None:
    check(make_case([300, 7], [4, 4], chain=True, dtype=torch.bfloat16, softcap=2.0), "flash_attn")
    check(make_case([0, 7], [40, 4], chain=True, dtype=torch.bfloat16, softcap=2.0), "flash_attn")


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "varlen trees": ("varlen", {"dtype": torch.bfloat16}, "'varlen' does chains and prompts .*use 'triton'"),
    "flash trees": ("flash_attn", {"dtype": torch.bfloat16}, "'flash_attn' does chains and prompts .*use 'triton'"),
    "dtype": ("varlen", {"chain": True}, "takes float16 and bfloat16 .*got torch.float32.*use 'sdpa'"),
    "odd head": ("flash_attn", {"chain": True, "dtype": torch.bfloat16, "dim": 36}, "multiples of 8.* 36 and 36"),
    "large head": ("varlen", {"chain": True, "dtype": torch.bfloat16, "dim": 264}, "up to 256 .*264"),
    "two heads": ("varlen", {"chain": True, "dtype": torch.bfloat16, "value_dim": 16}, "equal head sizes .*32 and 16"),
    "softcap": ("varlen", {"chain": True, "dtype": torch.bfloat16, "softcap": 2.0}, "'varlen' has no softcap, got 2.0"),
    "sinks": ("flash_attn", {"chain": True, "dtype": torch.bfloat16, "sinks": True}, "'flash_attn' has no sinks"),
    "fixed": ("varlen", {"chain": True, "fixed_chunks": True}, "fixed_chunks needs .* 'cpp' or 'triton'"),
    "fixed flex": ("flex", {"fixed_chunks": True}, "fixed_chunks needs .* 'cpp' or 'triton', got 'flex'"),
}


@on_cpu
@pytest.mark.parametrize("name", REFUSED)
def test_what_a_backend_cannot_do_is_refused(name: str, new_varlen: Recorder, fake_flash_attn: Recorder) -> None:
    backend, options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        make_case([12], [4], **options).run(backend)
    assert not new_varlen.calls
    assert not fake_flash_attn.calls


@on_cpu
@pytest.mark.parametrize("backend", ["varlen", "flash_attn"])
def test_tensors_on_the_cpu_are_refused(backend: str) -> None:
    with pytest.raises(ValueError, match=f"backend '{backend}' needs tensors on CUDA, got cpu; use 'packed'"):
        make_case([12], [4], chain=True, dtype=torch.bfloat16).run(backend)


@pytest.mark.usefixtures("cuda_is_cpu")
def test_an_absent_package_is_one_error_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    case = make_case([12], [4], chain=True, dtype=torch.bfloat16)
    case.tensors.update({k: v.cpu() for k, v in case.tensors.items() if v is not None})
    with pytest.raises(ValueError, match=r"flash-attn .*pip install --no-build-isolation \"specdec\[flash-attn\]\""):
        case.run("flash_attn")


@on_cpu
def test_a_torch_without_windows_is_refused(monkeypatch: pytest.MonkeyPatch, cuda_is_cpu: None) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", lambda query, key, value, is_causal: query)
    with pytest.raises(ValueError, match=r"torch 2\.11 or newer.* has an older one; use 'sdpa'"):
        make_case([12], [4], chain=True, dtype=torch.bfloat16).run("varlen")


Choose = Callable[..., str]


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Choose:
    """What auto chooses on a GPU where these are there."""

    def chosen(*there: str, chain: bool = True, dtype: Any = torch.bfloat16, dim: int = 64, cap: float = 0.0) -> str:
        monkeypatch.setattr(varlen, "available", lambda device: "varlen" in there)
        monkeypatch.setattr(flash_attn, "installed", lambda: "flash_attn" in there)
        monkeypatch.setattr(tree_attention_module, "has_triton", lambda: True)
        q: Any = SimpleNamespace(device=torch.device("cuda"), dtype=dtype, shape=(3, 4, dim))
        v: Any = SimpleNamespace(shape=(1, 2, 64, dim))
        words: Any = None if chain else torch.zeros(3, 1)
        return tree_attention_module.choose_backend(q, v, words, cap, None, False)

    return chosen


def test_auto_on_a_gpu(choose: Choose) -> None:
    assert choose("varlen", "flash_attn") == "varlen"
    assert choose("flash_attn") == "flash_attn"
    assert choose() == "sdpa"
    assert choose("varlen", "flash_attn", chain=False) == "triton"
    assert choose("varlen", "flash_attn", dtype=torch.float32) == "sdpa"
    assert choose("varlen", "flash_attn", dim=512) == "sdpa"
    assert choose("varlen", "flash_attn", cap=2.0) == "triton"
    assert choose("varlen", "flash_attn", dtype=torch.float64) == "packed"


@pytest.mark.parametrize("backend", ["varlen", "flash_attn"])
def test_a_target_refuses_what_has_no_trees(backend: str) -> None:
    with pytest.raises(ValueError, match=f"'{backend}' does prompts and chains only, but a target verifies trees"):
        choose_backend(backend, torch.device("cpu"))


def test_padding_rows_become_chains_of_one_row() -> None:
    def plan() -> Plan:
        t = make_case([12, 0, 5], [3, 2, 0], rows=[5, 3, 1], chain=True).tensors
        return make_plan(t["block_table"], t["row_starts"], t["context_lens"], t["tree_sizes"], None)

    made = chains.make_chains(plan())
    assert made.row_starts.tolist() == [0, 3, 4, 5, 7, 8]
    assert made.lengths.tolist() == [15, 12, 12, 2, 5]
    assert made.slot_starts.tolist() == [0, 15, 27, 39, 41, 46]
    assert made.rows is not None
    assert made.rows.tolist() == [0, 1, 2, 3, 4, 5, 6, 8]  # row 7 sees nothing
    assert (made.longest_rows, made.longest_slots) == (3, 15)
