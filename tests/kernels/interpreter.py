"""Test-only repairs of Triton's interpreter, 3.6 to 3.9. Import it before any kernel.

- bf16 `tl.dot`: numpy holds bf16 as uint16, and the interpreter multiplies the raw bits.
- `tl.dot` by einsum: numpy's matmul rounds a row differently in another place of the tile, which no GPU does, so
  bitwise tests would fail for no reason.
- casts from float32 to bf16 and to 8-bit floats: the interpreter cuts bits off instead of rounding to nearest even.
- masks that come out of a scalar condition are int32, which triton 3.9's loads and stores refuse.
- time: every call of a helper patches triton.language anew; once a launch is enough.
- loop bounds read from memory: numpy >= 2.4 refuses int() of a one-element array, which triton 3.6 calls.
"""

import numpy as np
import torch
import triton.language as tl
import triton.runtime.interpreter as ti
from triton import knobs

assert knobs.runtime.interpret, "set TRITON_INTERPRET=1 before triton is imported"


def _wide(handle: ti.TensorHandle) -> np.ndarray:
    """The handle's numbers in a dtype numpy can multiply."""
    if handle.dtype.scalar == tl.bfloat16:
        return (handle.data.astype(np.uint32) << 16).view(np.float32)
    if handle.dtype.primitive_bitwidth == 8 and handle.dtype.is_floating():
        return ti._convert_float(handle.data, handle.dtype, tl.float32, None).view(np.float32)
    return handle.data


def _create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
    x, y = _wide(a), _wide(b)
    if x.dtype.kind in "iu":
        product = np.matmul(x, y, dtype=d.data.dtype)
    else:
        product = np.einsum("...ij,...jk->...ik", x.astype(d.data.dtype), y.astype(d.data.dtype), optimize=False)
    return ti.TensorHandle(product + d.data, d.dtype.scalar)


_convert = ti._convert_float
_NARROW = {
    tl.bfloat16: (torch.bfloat16, torch.uint16),
    tl.float8e4nv: (torch.float8_e4m3fn, torch.uint8),
    tl.float8e5: (torch.float8_e5m2, torch.uint8),
}


def _convert_float(input, input_dtype, output_dtype, rounding_mode):
    if input_dtype != tl.float32 or output_dtype not in _NARROW:
        return _convert(input, input_dtype, output_dtype, rounding_mode)
    dtype, bits = _NARROW[output_dtype]
    numbers = torch.from_numpy(np.ascontiguousarray(input).view(np.float32))
    return numbers.to(dtype).view(bits).numpy().reshape(input.shape)


_patch_tensor = ti._patch_lang_tensor


def _patch_lang_tensor(tensor, scope=None):
    def index(self) -> int:
        return int(np.asarray(self.handle.data).item())

    if scope is None:  # older releases patch in place
        _patch_tensor(tensor)
        tensor.__index__ = index
    else:
        _patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", index)


_load, _store = ti.InterpreterBuilder.create_masked_load, ti.InterpreterBuilder.create_masked_store


def _bool(mask: ti.TensorHandle) -> ti.TensorHandle:
    return mask if mask.data.dtype == bool else ti.TensorHandle(mask.data.astype(bool), tl.int1)


def _create_masked_load(self, ptrs, mask, *rest, **options):
    return _load(self, ptrs, _bool(mask), *rest, **options)


def _create_masked_store(self, ptrs, value, mask, *rest):
    return _store(self, ptrs, value, _bool(mask), *rest)


_patch_language = ti._patch_lang
_launch = ti.GridExecutor.__call__
_patched: set[object] = set()  # modules patched since the launch began


def _patch_lang(fn):
    modules = {value for value in fn.__globals__.values() if value is tl or value is tl.core}
    if modules <= _patched:
        return ti._LangPatchScope()  # with nothing to restore
    _patched.update(modules)
    return _patch_language(fn)


def _launch_grid(self, *args, **kwargs):
    _patched.clear()
    try:
        return _launch(self, *args, **kwargs)
    finally:
        _patched.clear()


if hasattr(ti, "_LangPatchScope"):
    ti._patch_lang = _patch_lang
    ti.GridExecutor.__call__ = _launch_grid
ti.InterpreterBuilder.create_dot = _create_dot
ti.InterpreterBuilder.create_masked_load = _create_masked_load
ti.InterpreterBuilder.create_masked_store = _create_masked_store
ti._convert_float = _convert_float
ti._patch_lang_tensor = _patch_lang_tensor
