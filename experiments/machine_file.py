"""`specdec run machine=FILE` or `machine=measure`: what this machine gives, which a method's steps are held against."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from specdec.experiments.machine import device_name

MEASURE = "measure"


@dataclass(frozen=True, slots=True)
class Machine:
    """The best of every kind, as `specdec bench machine` found it.

    Attributes:
        device: cpu or cuda.
        name: of the processor or GPU.
        threads: of torch, which decide on a CPU.
        bandwidth: bytes per second of a read or a copy.
        flops: floating-point operations per second, by dtype, of the fastest product.
    """

    device: str
    name: str
    threads: int
    bandwidth: float
    flops: Mapping[str, float]

    @staticmethod
    def parse(content: Mapping[str, Any], where: str) -> Machine:
        """From what `specdec bench machine` writes.

        Raises:
            ValueError: it is something else.
        """
        try:
            flops: dict[str, float] = {}
            for product in content["products"]:
                flops[product["dtype"]] = max(flops.get(product["dtype"], 0.0), float(product["best"]))
            bandwidth = max(float(rates["best"]) for rates in content["bandwidth"].values())
            return Machine(content["device"], content["name"], int(content["threads"]), bandwidth, flops)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            told = f"{type(error).__name__} {error}"
            raise ValueError(f"machine: {where} is not a file of `specdec bench machine` ({told})") from None

    def check(self, device: torch.device, dtype: str) -> None:
        """See that it is the machine a run is on.

        Raises:
            ValueError: it is another one, or was measured in other dtypes or with other threads.
        """
        here = f"{device.type} {device_name(device)}"
        if (self.device, self.name) != (device.type, device_name(device)):
            raise ValueError(f"machine: the file is of {self.device} {self.name}, this is {here}; use machine=measure")
        threads = torch.get_num_threads()
        if self.device == "cpu" and self.threads != threads:
            raise ValueError(
                f"machine: the file was measured with {self.threads} threads, this run has {threads}; give "
                f"measure.threads={self.threads}, or machine=measure"
            )
        if dtype not in self.flops:
            raise ValueError(
                f"machine: the file has products in {', '.join(self.flops)}, the target is in {dtype}; measure with "
                f"`specdec bench machine dtype={dtype}`, or machine=measure"
            )


def read_machine(file: Path) -> Machine:
    """Of a file.

    Raises:
        ValueError: there is none, or it holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"machine={file} cannot be read ({error}); expected a file of `specdec bench machine`, or machine=measure"
        ) from None
    return Machine.parse(content, str(file))
