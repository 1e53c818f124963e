"""Attention of tree nodes over a paged context and their own ancestors.

One call verifies the trees of a whole batch: every row (tree node) sees its sequence's committed context and the nodes
whose bits are set in its ancestor words. Backends, chosen by `backend="auto"`:

| backend | where | what |
|---|---|---|
| naive | any | the maths, in the input's dtype; float64 is the tests' oracle |
| packed | CPU | query heads of one KV head packed into one matrix; `Plan` shared by all layers of a step |
| cpp | CPU | C++, compiled when first used: all sequences of a pass in one call |
| sdpa | any | torch's SDPA with dense masks; the rival in benchmarks |
| triton | CUDA | fused.py: split-KV, device-side lengths, graph-capturable |
| flex | any | torch's FlexAttention; compiled on CUDA, plain operators on the CPU |
| varlen | CUDA | torch's variable-length FlashAttention: prompts and chains only |
| flash_attn | CUDA | the flash-attn package, an extra: prompts and chains only |
"""

from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from specdec.kernels.common.dispatch import has_triton, require_triton
from specdec.kernels.tree_attention import cpp, flash_attn, flex, packed, sdpa, varlen
from specdec.kernels.tree_attention.chains import fits
from specdec.kernels.tree_attention.checks import check_shapes, check_values
from specdec.kernels.tree_attention.naive import tree_attention_naive
from specdec.kernels.tree_attention.plan import Plan, make_plan

if TYPE_CHECKING:
    from specdec.kernels.tree_attention.launch import Workspace

__all__ = [
    "HOST",
    "Backend",
    "Plan",
    "cpp",
    "flex",
    "make_plan",
    "packed",
    "sdpa",
    "tree_attention",
    "tree_attention_naive",
]

HOST = {"packed": packed, "cpp": cpp}  # the CPU's own: they share a plan, and can keep a row's bits on any tree
Backend = Literal["auto", "naive", "packed", "cpp", "sdpa", "triton", "flex", "varlen", "flash_attn"]


def tree_attention(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    block_table: Tensor,
    row_starts: Tensor,
    context_lens: Tensor,
    tree_sizes: Tensor,
    words: Tensor | None,
    *,
    scale: float | None = None,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    fixed_chunks: bool = False,
    backend: Backend = "auto",
    workspace: "Workspace | None" = None,
    plan: Plan | None = None,
) -> Tensor:
    """Attend from tree nodes to their context and ancestors.

    Args:
        q: `[R, Hq, D]` queries of all sequences' rows, packed. float64 (not triton), float32, bfloat16 or float16.
        k_pool: `[pages, Hkv, page, D]` keys; q's dtype, or an 8-bit float that is upcast on load. Hq % Hkv == 0.
        v_pool: `[pages, Hkv, page, Dv]` values; Dv may differ from D.
        block_table: `[B, P]` int32, the pages of every sequence. A dense cache is one page a sequence.
        row_starts: `[B + 1]` int32; rows row_starts[b] : row_starts[b + 1] belong to sequence b.
        context_lens: `[B]` int32 committed slots, visible to every row of the sequence.
        tree_sizes: `[B]` int32 nodes; node j of sequence b lies in slot context_lens[b] + j.
        words: `[R, W]` int64, bit i % 64 of word i // 64 says that the row sees node i. Bits past the tree are 0. A row
            without bits is padding: it sees the context only, and gives 0 where there is none. None: the rows of a
            sequence are its last nodes, each sees all nodes up to itself (a causal chain); surplus rows are padding.
        scale: factor on the scores; None is D ** -0.5.
        window: a key is visible iff query position - key position < window; 0 for all. A row's position is
            context + number of its visible nodes - 1; its visible nodes lie at successive positions.
        softcap: scores become softcap * tanh(scores / softcap) after scaling; 0 for none.
        sinks: `[Hq]` logits that join the softmax's denominator, or None.
        fixed_chunks: give every row bits that do not depend on the batch; slower. On the CPU (packed, cpp) they equal
            one-token decoding over the row's path, on the GPU they do so for chains.
        backend: see the module's table. "auto": on the CPU cpp, or packed without a compiler; on CUDA triton, and for
            chains without words the first of varlen, flash_attn and sdpa that is there and applies.
        workspace: buffers of the triton backend, shared by the layers of a step, and held by a CUDA graph; None
            makes new ones for this call.
        plan: `make_plan` of these arguments, for the backends that read lengths to the host, shared by the layers of a
            step; None makes one for this call.

    Returns:
        `[R, Hq, Dv]` in q's dtype.

    Raises:
        ValueError: shapes, dtypes, devices, lengths, table entries or words do not fit (on a GPU values are looked at
            when shapes are new), or the backend cannot do what is asked for.
    """
    check_shapes(q, k_pool, v_pool, block_table, row_starts, context_lens, tree_sizes, words, window, softcap, sinks)
    if _checks_values(q, k_pool, block_table, words):
        check_values(
            q.shape[0], k_pool.shape[0], k_pool.shape[2], block_table, row_starts, context_lens, tree_sizes, words
        )
    if scale is None:
        scale = q.shape[2] ** -0.5
    if backend == "auto":
        backend = choose_backend(q, v_pool, words, softcap, sinks, fixed_chunks)
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, got {backend!r}")
    if fixed_chunks and backend not in (*HOST, "triton"):
        raise ValueError(f"fixed_chunks needs backend 'packed', 'cpp' or 'triton', got {backend!r}")
    if backend == "cpp" and q.device.type != "cpu":
        raise ValueError(f"backend 'cpp' needs tensors on the CPU, got {q.device.type}; use 'triton'")
    if backend == "naive":
        return tree_attention_naive(
            q, k_pool, v_pool, block_table, row_starts, context_lens, tree_sizes, words,
            scale=scale, window=window, softcap=softcap, sinks=sinks,
        )  # fmt: skip
    if backend == "triton":
        require_triton()
        from specdec.kernels.tree_attention.launch import tree_attention_fused

        return tree_attention_fused(
            q, k_pool, v_pool, block_table, row_starts, context_lens, tree_sizes, words, scale=scale, window=window,
            softcap=softcap, sinks=sinks, fixed_chunks=fixed_chunks, workspace=workspace,
        )  # fmt: skip
    plan = plan or make_plan(block_table, row_starts, context_lens, tree_sizes, words, rows=q.shape[0])
    if backend in HOST:
        return HOST[backend].attend(
            q, k_pool, v_pool, plan, scale=scale, window=window, softcap=softcap, sinks=sinks, fixed_chunks=fixed_chunks
        )
    attend = {"sdpa": sdpa.attend, "flex": flex.attend, "varlen": varlen.attend, "flash_attn": flash_attn.attend}[
        backend
    ]
    return attend(q, k_pool, v_pool, plan, scale=scale, window=window, softcap=softcap, sinks=sinks)


_met: set[tuple[object, ...]] = set()


def _checks_values(q: Tensor, k_pool: Tensor, block_table: Tensor, words: Tensor | None) -> bool:
    """On a GPU values are looked at once for every set of shapes, and never while a graph is captured."""
    if q.device.type != "cuda":
        return q.device.type == "cpu"
    key = (q.device, q.shape, k_pool.shape, block_table.shape, None if words is None else words.shape)
    if key in _met or torch.cuda.is_current_stream_capturing():
        return False
    _met.add(key)
    return True


def choose_backend(
    q: Tensor, v_pool: Tensor, words: Tensor | None, softcap: float, sinks: Tensor | None, fixed_chunks: bool
) -> Literal["cpp", "packed", "sdpa", "triton", "varlen", "flash_attn"]:
    """What `backend="auto"` means for these arguments."""
    if q.device.type == "cpu" and q.dtype != torch.float64 and cpp.available():
        return "cpp"
    if q.device.type == "cpu" or q.dtype == torch.float64:
        return "packed"
    plain = not softcap and sinks is None and not fixed_chunks
    if plain and words is None and fits(q, v_pool):
        if varlen.available(q.device):
            return "varlen"
        if flash_attn.installed():
            return "flash_attn"
    if plain and (words is None or max(q.shape[2], v_pool.shape[3]) > 256 or not has_triton()):
        return "sdpa"
    return "triton"
