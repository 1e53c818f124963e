"""Free memory, of made-up machines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from specdec import free_memory
from specdec.free_memory import free_bytes

CPU = torch.device("cpu")
MIB = 1 << 20


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders that stand for /proc and /sys/fs/cgroup, `proc` and `groups`: 1000 MiB are available."""
    monkeypatch.setattr(free_memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(free_memory, "GROUPS", tmp_path / "groups")
    put(tmp_path / "proc/meminfo", f"MemTotal: {1 << 22} kB\nMemFree: 7 kB\nMemAvailable: {1000 << 10} kB\nHuge: 0\n")
    return tmp_path


def put(file: Path, text: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


def limit(group: Path, most: object, used: int, files: int = 0) -> None:
    """A group of version 2."""
    put(group / "memory.max", most)
    put(group / "memory.current", used)
    put(group / "memory.stat", f"anon 5\ninactive_file {files}")


def test_a_machine_without_groups(machine: Path) -> None:
    assert free_bytes(CPU) == 1000 * MIB


def test_a_container_sees_its_own_group_as_the_top(machine: Path) -> None:
    put(machine / "proc/self/cgroup", "0::/")
    limit(machine / "groups", 300 * MIB, 100 * MIB, 50 * MIB)
    assert free_bytes(CPU) == 250 * MIB  # files that nobody looks at are given back
    limit(machine / "groups", "max", 100 * MIB)
    assert free_bytes(CPU) == 1000 * MIB
    limit(machine / "groups", 5000 * MIB, 100 * MIB)
    assert free_bytes(CPU) == 1000 * MIB, "a limit is no memory"
    limit(machine / "groups", 300 * MIB, 301 * MIB)
    assert free_bytes(CPU) == 0


def test_the_tightest_of_the_groups_around_a_process_holds(machine: Path) -> None:
    put(machine / "proc/self/cgroup", "0::/jobs/7/step")
    limit(machine / "groups/jobs/7/step", "max", 10 * MIB)
    limit(machine / "groups/jobs/7", 200 * MIB, 80 * MIB)
    limit(machine / "groups/jobs", 900 * MIB, 80 * MIB)
    limit(machine / "groups/others", 1, 0)
    assert free_bytes(CPU) == 120 * MIB


def test_a_path_of_the_machine_that_a_container_does_not_see(machine: Path) -> None:
    put(machine / "proc/self/cgroup", "0::/docker/0123abcd")
    limit(machine / "groups", 300 * MIB, 100 * MIB)
    assert free_bytes(CPU) == 200 * MIB


def test_version_1_has_a_folder_for_memory(machine: Path) -> None:
    put(machine / "proc/self/cgroup", "5:cpu,cpuacct:/box\n4:memory:/box\n1:name=systemd:/a:b\n0::/")
    group = machine / "groups/memory/box"
    for name, value in (("limit_in_bytes", 400 * MIB), ("usage_in_bytes", 150 * MIB)):
        put(group / f"memory.{name}", value)
    put(group / "memory.stat", f"inactive_file 1\ntotal_inactive_file {20 * MIB}")
    put(machine / "groups/memory/memory.limit_in_bytes", 0x7FFFFFFFFFFFF000)  # none
    put(machine / "groups/memory/memory.usage_in_bytes", 3000 * MIB)
    assert free_bytes(CPU) == 270 * MIB


def test_a_system_that_does_not_tell(machine: Path) -> None:
    (machine / "proc/meminfo").unlink()
    assert free_bytes(CPU) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_this_machine() -> None:
    assert 0 < free_bytes(CPU) <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_gpu_has_what_torch_keeps_for_itself_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """But not what lies beside something that is used, which torch cannot give back."""
    told = {"memory_reserved": 700, "memory_allocated": 500, "memory_stats": {"inactive_split_bytes.all.current": 30}}
    for name, value in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9000))
    assert free_bytes(torch.device("cuda:0")) == 1000 + 200 - 30
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: {})  # nothing was allocated yet
    assert free_bytes(torch.device("cuda:0")) == 1200
