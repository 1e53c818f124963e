"""Run as a script, without TRITON_INTERPRET: compiles kernels for a GPU that is not there, prints what they need.

Usage: python compile_ahead.py ARCH 'JSON list of {"kernel": name, ...arguments of the function of that name below}'
Prints one JSON line: a list of {"registers", "stack", "shared", "warps", "wgmma", "mma", "async_copies", ...}.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import MockTensor

INT32, INT64, FLOAT32 = (MockTensor(dtype) for dtype in (torch.int32, torch.int64, torch.float32))


class OfflineDriver:
    """What `JITFunction.warmup` asks a driver for."""

    def __init__(self, arch: int):
        self._target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        return lambda *args, **kwargs: 0.0

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind

    @classmethod
    def is_active(cls) -> bool:
        return True


def resources(kernel: Any) -> dict[str, int]:
    """Registers, stack (spills show up there), shared memory and the instructions that matter."""
    tool = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        listing = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    usage = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", listing))
    ptx = kernel.asm["ptx"]
    return {
        "registers": int(usage["REG"]),
        "stack": int(usage["STACK"]) + int(usage["LOCAL"]),
        "shared": kernel.metadata.shared,
        "warps": kernel.metadata.num_warps,
        "wgmma": len(re.findall(r"wgmma\.mma_async|tcgen05\.mma", ptx)),
        "mma": len(re.findall(r"\bmma\.sync", ptx)),
        "async_copies": len(re.findall(r"cp\.async\.cg\.shared\.global[^;]*0x10", ptx)),
        "small_async_copies": len(re.findall(r"cp\.async\.ca", ptx)),
    }


def split(
    dtype: str = "bfloat16",
    pool_dtype: str | None = None,
    dim: int = 128,
    value_dim: int | None = None,
    group: int = 4,
    heads: int = 8,
    page: int = 64,
    rows: int = 16,
    batch: int = 1,
    node_words: int = 1,
    causal: bool = False,
    window: int = 0,
    softcap: bool = False,
    sinks: bool = False,
    fixed: bool = False,
) -> Any:
    """The split kernel as `tree_attention_fused` would launch it."""
    from specdec.kernels.tree_attention.fused import tree_attention_split_kernel
    from specdec.kernels.tree_attention.launch import choose_config

    value_dim = value_dim or dim
    q_type = getattr(torch, dtype)
    q, pool = MockTensor(q_type), MockTensor(getattr(torch, pool_dtype or dtype))
    node_window = not causal and 0 < window < 64 * node_words
    extras, warpgroups = softcap or node_window, ARCH // 10 in (9, 10)
    config = choose_config(q_type, max(dim, value_dim), group, rows, batch, page, fixed, extras, warpgroups)
    q_heads = heads * group
    return tree_attention_split_kernel.warmup(
        q, pool, pool, q, FLOAT32, FLOAT32, INT32 if causal else INT64, INT32, INT32, INT32, INT32, INT32, INT32,
        FLOAT32 if sinks else INT32, 8, window, 0.1, 30.0,
        q_heads * dim, dim, heads * page * dim, page * dim, dim, heads * page * value_dim, page * value_dim, value_dim,
        q_heads * value_dim, value_dim, 1000, node_words,
        W=node_words, BLOCK_W=triton.next_power_of_2(node_words), G=group,
        D=dim, DV=value_dim, PAGE=page, BLOCK_M=config.block_m, BLOCK_N=config.block_n,
        BLOCK_D=max(16, triton.next_power_of_2(dim)), BLOCK_DV=max(16, triton.next_power_of_2(value_dim)), LOG2_B=4,
        ALIGN=config.chunk if fixed else config.block_n, CAUSAL=causal, WINDOW=window > 0,
        NODE_WINDOW=node_window, SOFTCAP=softcap, SINKS=sinks,
        PRECISION="ieee" if dtype == "float32" else "tf32",
        grid=(1, 1, 1), num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip


def plan(fixed: bool = False, window: int = 0, batch: int = 32) -> Any:
    """The plan kernel of a batch."""
    from specdec.kernels.tree_attention.fused import tree_attention_plan_kernel

    return tree_attention_plan_kernel.warmup(
        INT32, INT32, INT32, INT32, INT32, batch, 33, window, G=4, CHUNK=256, BLOCK_M=64, BLOCK_N=64,
        BLOCK_B=triton.next_power_of_2(batch), FIXED=fixed, WINDOW=window > 0, grid=(1,),
    )  # fmt: skip


def combine(dim: int = 128, sinks: bool = False) -> Any:
    """The kernel that merges the chunks of a row."""
    from specdec.kernels.tree_attention.fused import tree_attention_combine_kernel

    return tree_attention_combine_kernel.warmup(
        MockTensor(torch.bfloat16), FLOAT32, FLOAT32, INT32, INT32, FLOAT32 if sinks else INT32, 8, 8, 4096, dim,
        G=4, DV=dim, BLOCK_DV=triton.next_power_of_2(dim), BLOCK_M=64, LOG2_B=4, SINKS=sinks, grid=(1, 1), num_warps=2,
    )  # fmt: skip


def ancestor_words(nodes: int = 64) -> Any:
    """One program a tree."""
    from specdec.kernels.ancestor_words.fused import ancestor_words_kernel

    width = triton.next_power_of_2(triton.cdiv(nodes, 64))
    return ancestor_words_kernel.warmup(
        INT32, INT32, INT64, INT32, nodes, nodes, width, BLOCK_N=triton.next_power_of_2(nodes), BLOCK_W=width, grid=(1,)
    )


def accept(nodes: int = 64) -> Any:
    """One program a tree."""
    from specdec.kernels.accept.fused import accept_kernel

    width = triton.next_power_of_2(triton.cdiv(nodes, 64))
    return accept_kernel.warmup(
        INT64, INT32, INT32, INT64, INT64, INT64, INT32, INT64, nodes, width,
        BLOCK_N=triton.next_power_of_2(nodes), BLOCK_W=width, grid=(1,),
    )  # fmt: skip


def kv_commit(dim: int = 128, page: int = 64) -> Any:
    """One program a layer, head and sequence."""
    from specdec.kernels.kv_commit.fused import kv_commit_kernel

    return kv_commit_kernel.warmup(
        MockTensor(torch.bfloat16), INT32, INT32, INT64, INT32, 1 << 24, 8 * page * dim, page * dim, dim, 1000, 64,
        D=dim, PAGE=page, BLOCK_D=triton.next_power_of_2(dim), ROWS=16, grid=(1, 1, 1),
    )  # fmt: skip


def kv_write(dim: int = 128, page: int = 64, pool_dtype: str = "bfloat16") -> Any:
    """One program a row."""
    from specdec.kernels.kv_write.fused import kv_write_kernel

    rows, pool = MockTensor(torch.bfloat16), MockTensor(getattr(torch, pool_dtype))
    block = triton.next_power_of_2(dim)
    return kv_write_kernel.warmup(
        rows, rows, pool, pool, INT32, INT32, INT32, 8 * dim, dim, 8 * dim, dim,
        8 * page * dim, page * dim, dim, 8 * page * dim, page * dim, dim, 1000,
        HEADS=8, D=dim, DV=dim, PAGE=page, BLOCK_H=8, BLOCK_D=block, BLOCK_DV=block, grid=(1,),
    )  # fmt: skip


def target_tokens(dtype: str = "bfloat16", vocab: int = 151936, rows: int = 64) -> Any:
    """One program a row."""
    from specdec.kernels.target_tokens.fused import choose_block, target_tokens_kernel

    block, warps = choose_block(rows, vocab)
    return target_tokens_kernel.warmup(
        MockTensor(getattr(torch, dtype)), INT32, INT32, INT32, INT32, FLOAT32, INT32, FLOAT32, FLOAT32, INT64,
        64, vocab, 8, 64 * vocab, vocab, BLOCK=block, grid=(1,), num_warps=warps,
    )  # fmt: skip


def ngram_match(max_n: int = 3, matches: int = 2) -> Any:
    """One program a sequence and block of places."""
    from specdec.kernels.ngram_match.fused import BLOCK, ngram_match_kernel

    return ngram_match_kernel.warmup(
        INT64, INT32, INT64, 1000, MIN_N=1, MAX_N=max_n, MATCHES=matches, BLOCK=BLOCK, grid=(1, 1)
    )


def ngram_match_select(candidates: int = 64, matches: int = 2) -> Any:
    """One program a sequence."""
    from specdec.kernels.ngram_match.fused import ngram_match_select_kernel

    block = triton.next_power_of_2(candidates)
    return ngram_match_select_kernel.warmup(INT64, INT32, INT32, candidates, MATCHES=matches, BLOCK=block, grid=(1,))


def tree_rejection(dtype: str = "bfloat16", vocab: int = 151936, nodes: int = 64, replacement: bool = False) -> Any:
    """One program a tree."""
    from specdec.kernels.tree_rejection.fused import BLOCK, WARPS, tree_rejection_kernel

    return tree_rejection_kernel.warmup(
        INT64, INT32, INT32, MockTensor(getattr(torch, dtype)), FLOAT32, INT32, INT32, FLOAT32, INT32, FLOAT32, FLOAT32,
        FLOAT32, FLOAT32, INT64, INT32, INT64, nodes, vocab, 8, nodes * vocab, vocab, nodes * vocab, vocab,
        BLOCK=BLOCK, BLOCK_N=triton.next_power_of_2(nodes), REPLACEMENT=replacement, grid=(1,), num_warps=WARPS,
    )  # fmt: skip


if __name__ == "__main__":
    ARCH = int(sys.argv[1])
    driver.set_active(OfflineDriver(ARCH))
    print(json.dumps([resources(globals()[job.pop("kernel")](**job)) for job in json.loads(sys.argv[2])]))
