"""`specdec bench machine`: what this machine reads, copies and multiplies, with how far repetitions are apart.

Streams go over buffers that no cache holds. Products are square, where arithmetic decides, and skinny: a few rows, the
nodes of a step, times matrices that together outgrow the caches, as a target's weights do. All are timed by turns; on a
GPU by events around a captured graph. The best of each is a roof of `specdec run machine=FILE`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.box import SIMPLE
from rich.table import Table
from torch import Tensor
from torch.nn.functional import linear
from transformers import AutoConfig

from specdec import loading
from specdec.experiments.bench.clock import Call, by_turns, prepare, quantiles
from specdec.experiments.bench.results import Json, origin
from specdec.experiments.machine import device_name, wait
from specdec.free_memory import free_bytes
from specdec.registry import unknown
from specdec.step import on

DTYPES = {str(t).removeprefix("torch."): t for t in (torch.bfloat16, torch.float16, torch.float32, torch.float64)}
BUFFER = {"cpu": 256 << 20, "cuda": 1 << 30}  # bytes, at least
CACHES = 4  # times all caches, at least
INNER = COLUMNS = 4096  # of a skinny product's matrices
ROWS = (1, 4, 16, 64)
SIDE = {"cpu": 4096, "cuda": 8192}  # of a square product, at most
SQUARE_SECONDS = 0.15  # of one, about, at most


@dataclass(frozen=True)
class Settings:
    """Of `specdec bench machine`.

    Attributes:
        target: a model's name or folder, in whose dtype products are measured, besides float32.
        dtype: that dtype; auto for the target's.
        seconds: of timing.
        output: the file.
        device: auto, or torch's name.
    """

    target: str = "tiny"
    dtype: str = "auto"
    seconds: float = 15.0
    output: str = "outputs/bench/machine.json"
    device: str = "auto"


@dataclass(frozen=True)
class Work:
    """What is timed: every call moves so many bytes and does so many floating-point operations.

    Attributes:
        about: what it is, as it goes into the file.
    """

    about: Json
    calls: list[Call]
    bytes: int
    flops: int


def measure_settings(settings: Settings) -> Json:
    """`measure_machine`, with where it comes from.

    Raises:
        ValueError: the target, dtype or device is not there, or the memory is too small.
    """
    if settings.dtype not in ("auto", *DTYPES):
        raise unknown("dtype", settings.dtype, ["auto", *DTYPES])
    dtype = DTYPES[settings.dtype] if settings.dtype != "auto" else dtype_of(settings.target)
    measured = measure_machine(loading.choose_device(settings.device), dtype, settings.seconds)
    return measured | {"provenance": origin(settings)}


def dtype_of(target: str) -> torch.dtype:
    """In which a model is loaded, without its weights.

    Raises:
        ValueError: there is no such model.
    """
    try:
        config = AutoConfig.from_pretrained(loading.model_path(target))
    except (OSError, ValueError) as error:
        raise ValueError(f"target={target} is no model ({error}); give dtype= in its place") from None
    return getattr(config, "dtype", None) or torch.float32


@torch.inference_mode()
def measure_machine(device: torch.device, dtype: torch.dtype, seconds: float) -> Json:
    """Rates of the device: bytes per second of streams, floating-point operations per second of products.

    Args:
        dtype: of the products, besides float32.
        seconds: of timing, about; five rounds are made in any case.

    Raises:
        ValueError: there is no memory for buffers that outgrow the caches.
    """
    caches = cache_bytes(device)
    size = buffer_bytes(device, caches)
    with on(device):
        works = list(_works(device, dtype, size))
        turns = {str(i): prepare(work.calls, device).turn for i, work in enumerate(works)}
        samples = by_turns(turns, seconds)
    streams, products = {}, []
    for work, taken in zip(works, samples.values(), strict=True):
        if "stream" in work.about:
            streams[work.about["stream"]] = _rates(work.bytes, taken)
        else:
            moved = round(work.bytes / quantiles(taken).p50)
            products.append({**work.about, **_rates(work.flops, taken), "bytes_per_second": moved})
    return {
        "what": "bytes per second of streams, and FLOP per second of products [rows, inner] x [inner, columns], with "
        "the bytes of their matrices per second",
        "device": device.type,
        "name": device_name(device),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "float32_precision": torch.get_float32_matmul_precision(),
        "buffer_bytes": size,
        "cache_bytes": caches,
        "rounds": len(samples["0"]),
        "bandwidth": streams,
        "products": products,
    }


def _works(device: torch.device, dtype: torch.dtype, size: int) -> Iterator[Work]:
    source, target = (torch.ones(size // 4, device=device) for _ in range(2))
    yield Work({"stream": "read"}, [source.sum], size, 0)
    yield Work({"stream": "copy"}, [lambda: target.copy_(source)], 2 * size, 0)
    for kind in dict.fromkeys((dtype, torch.float32)):
        yield _square(device, kind)
        matrix = COLUMNS * INNER * kind.itemsize
        pool = [torch.randn(COLUMNS, INNER, device=device).to(kind) for _ in range(-(-size // matrix))]
        for rows in ROWS:
            x = torch.randn(rows, INNER, device=device).to(kind)
            about = {"dtype": _name(kind), "rows": rows, "inner": INNER, "columns": COLUMNS}
            yield Work(about, [_product(x, weight) for weight in pool], matrix, 2 * rows * INNER * COLUMNS)


def _product(x: Tensor, weight: Tensor) -> Call:
    return lambda: linear(x, weight)


def _square(device: torch.device, dtype: torch.dtype) -> Work:
    """As large as time allows."""
    side = 256
    while True:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        call = _product(a, b)
        if side >= SIDE[device.type] or 8 * min(_seconds(call, device) for _ in range(3)) > SQUARE_SECONDS:
            about = {"dtype": _name(dtype), "rows": side, "inner": side, "columns": side}
            return Work(about, [call], 3 * side * side * dtype.itemsize, 2 * side**3)
        side *= 2


def _seconds(call: Call, device: torch.device) -> float:
    wait(device)
    started = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - started


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _rates(amount: int, seconds: list[float]) -> Json:
    """Per second, of an amount that took so long each time: the best, and percentiles of the rate."""
    spread = quantiles([amount / s for s in seconds])
    return {"best": round(amount / min(seconds)), **{name: round(rate) for name, rate in spread._asdict().items()}}


def cache_bytes(device: torch.device) -> int:
    """All caches of the device: a GPU's L2; every cache of the CPUs that Linux tells of, 0 where it tells nothing."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    found: dict[tuple[str, str, str], int] = {}
    for cache in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index*"):
        try:
            level, kind, shared, size = (
                (cache / name).read_text().strip() for name in ("level", "type", "shared_cpu_list", "size")
            )
            found[level, kind, shared] = int(size[:-1]) * units[size[-1]]
        except (OSError, ValueError, KeyError, IndexError):
            continue
    return sum(found.values())


def buffer_bytes(device: torch.device, caches: int, free: Callable[[torch.device], int] | None = None) -> int:
    """Of a stream's buffer: a multiple of all caches, but no more than a twelfth of the memory that is free.

    Raises:
        ValueError: that does not outgrow the caches.
    """
    most = (free or free_bytes)(device) // 12
    size = min(max(BUFFER[device.type], CACHES * caches), most) >> 20 << 20
    if size < max(2 * caches, 1 << 20):
        raise ValueError(
            f"{device} has {12 * most:,} bytes free, too little for buffers that outgrow its caches of {caches:,} "
            f"bytes; expected {24 * caches:,}: free memory, or measure beforehand with `specdec bench machine`"
        )
    return size


def show(measured: Json) -> Table:
    """For the terminal."""
    threads = f", {measured['threads']} threads" if measured["device"] == "cpu" else ""
    table = Table(title=f"{measured['name']}{threads}", box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    for column in ("", "best", "p50", "p20 to p80", "matrices read"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, rates in measured["bandwidth"].items():
        table.add_row(f"{name}, {measured['buffer_bytes'] >> 20} MiB", *_cells(rates, "GB/s"), "")
    for product in measured["products"]:
        shape = f"{product['rows']} x {product['inner']} x {product['columns']}"
        read = f"{product['bytes_per_second'] / 1e9:.1f} GB/s"
        table.add_row(f"{product['dtype']} {shape}", *_cells(product, "GFLOP/s"), read if product["rows"] < 256 else "")
    table.caption = f"by turns, {measured['rounds']} rounds; caches: {measured['cache_bytes'] >> 20} MiB in all"
    return table


def _cells(rates: Json, unit: str) -> list[str]:
    best, low, middle, high = (f"{rates[name] / 1e9:,.1f}" for name in ("best", "p20", "p50", "p80"))
    return [f"{best} {unit}", middle, f"{low} to {high}"]
