"""Which weights a drafter reads in a step, and what it computes with them: counted while it drafts a short text.

Every product in `propose` and `observe` is seen on its way to the device. An operand that lies in the memory of a
parameter or buffer, of the drafter's or the target's (whose head or layers many drafters use), is a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from specdec.decode import decode
from specdec.engine import Engine
from specdec.metrics import DecodingStats
from specdec.quantization import stored_bytes
from specdec.request import Request
from specdec.sampling import SamplingParams
from specdec.step import Step

aten = torch.ops.aten
# a product, and which of its arguments are multiplied
PRODUCTS = {aten.linear: (0, 1), aten.mm: (0, 1), aten.bmm: (0, 1), aten.mv: (0, 1), aten.matmul: (0, 1)}
PRODUCTS |= {aten.addmm: (1, 2), aten.baddbmm: (1, 2), aten.addmv: (1, 2), aten._grouped_mm: (0, 1)}


class Reads(NamedTuple):
    """Of a draft step: bytes of weights, however many sequences there are; operations with them, for each sequence."""

    bytes: float
    flops: float


class Counter(TorchDispatchMode):
    """Adds up what products read of `weights` (addresses of their memory) and compute with it."""

    def __init__(self, weights: set[int]):
        super().__init__()
        self.weights = weights
        self.bytes = self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        places = PRODUCTS.get(func.overloadpacket)
        if places is not None:
            for weight in (args[i] for i in places):
                if any(address in self.weights for address in addresses(weight)):
                    self.bytes += min(stored_bytes(weight), _held(weight))
                    self.flops += 2 * made.numel() * args[places[0]].shape[-1]
        return made


class _Watched:
    """A drafter whose proposals are counted."""

    def __init__(self, drafter: Any, counter: Counter):
        self._drafter, self._counter = drafter, counter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._drafter, name)

    def propose(self, *args: Any, **named: Any) -> Any:
        return self._counted(self._drafter.propose, *args, **named)

    def observe(self, *args: Any, **named: Any) -> Any:
        return self._counted(self._drafter.observe, *args, **named)

    def _counted(self, call: Callable[..., Any], *args: Any, **named: Any) -> Any:
        with self._counter:
            return call(*args, **named)


def drafter_reads(engine: Engine, prompt: Sequence[int], tokens: int, sampling: SamplingParams) -> Reads | None:
    """What its drafter reads in a step, on average over `tokens` new tokens of one text; None for one without weights.

    Args:
        engine: one of its own, which serves nothing else; its step runs as it is, in no graph. Attention through
            FlexAttention cannot be counted in, and reads no weights whichever way it is done.
    """
    held = [*weights_of(engine.drafter), *weights_of(engine.target.model)]
    counter = Counter({address for weight in held for address in addresses(weight)})
    drafter: Any = _Watched(engine.drafter, counter)
    stats = DecodingStats()
    run = Step(engine.target, drafter, engine.rule, 1, len(prompt) + tokens)
    for _ in decode(run, [Request(list(prompt), tokens, sampling)], stats):
        pass
    if not counter.bytes or not stats.forwards:
        return None
    return Reads(counter.bytes / stats.forwards, counter.flops / stats.forwards)


def weights_of(owner: object, package: str = "", deep: int = 4) -> Iterator[Tensor]:
    """Parameters, buffers and other tensors that an object holds, also in the objects of its package that it holds."""
    package = package or type(owner).__module__.partition(".")[0]
    if isinstance(owner, Tensor):
        yield owner
    elif isinstance(owner, nn.Module):
        yield from owner.parameters()
        yield from owner.buffers()
        yield from (x for module in owner.modules() for x in vars(module).values() if isinstance(x, Tensor))
    elif isinstance(owner, Mapping | list | tuple):
        for part in owner.values() if isinstance(owner, Mapping) else owner:
            yield from weights_of(part, package, deep)
    elif deep and type(owner).__module__.partition(".")[0] in (package, "specdec"):
        for part in getattr(owner, "__dict__", {}).values():
            yield from weights_of(part, package, deep - 1)


def addresses(tensor: object) -> list[int]:
    """Of a tensor's memory, of a packed one's parts."""
    if not isinstance(tensor, Tensor):
        return []
    if hasattr(tensor, "__tensor_flatten__"):
        return [a for name in tensor.__tensor_flatten__()[0] for a in addresses(getattr(tensor, name))]
    return [tensor.untyped_storage().data_ptr()] if tensor.layout is torch.strided else []


def _held(weight: Tensor) -> int:
    """Bytes of its memory: a matrix that is repeated for a batch is in it once."""
    if hasattr(weight, "__tensor_flatten__"):
        return stored_bytes(weight)
    return weight.untyped_storage().nbytes()
