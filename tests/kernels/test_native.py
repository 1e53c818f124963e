"""C++ made on the machine it runs on: kept, shared, and what happens where it cannot be made."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from specdec.attention import choose_backend
from specdec.kernels.common import native
from specdec.kernels.tree_attention import cpp

SOURCE = 'extern "C" int answer() { return 42; }\n'
pytestmark = pytest.mark.skipif(native.find_compiler() is None, reason="a C++ compiler")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file to compile, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "answer.cpp"
    path.write_text(SOURCE, encoding="utf-8")
    yield path
    for function in (native.load, native.available, native.find_compiler):
        function.cache_clear()


def test_made_once_and_kept(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.load(source).answer() == 42
    (made,) = (source.parent / "cache" / "specdec").iterdir()  # and nothing that was left on the way
    native.load.cache_clear()
    monkeypatch.setattr(tempfile, "TemporaryDirectory", lambda **_: pytest.fail("it was there"))
    assert native.load(source).answer() == 42
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(source.parent / "cache"))
    source.write_text(SOURCE.replace("42", "43"), encoding="utf-8")
    native.load.cache_clear()
    assert native.load(source).answer() == 43
    assert made.is_file()


def test_several_at_once(source: Path) -> None:
    code = f"""
from pathlib import Path
from specdec.kernels.common import native
print(native.load(Path({str(source)!r})).answer())
"""
    found: list[str] = []

    def one() -> None:
        found.append(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["42\n"] * 2
    assert len(list((source.parent / "cache" / "specdec").iterdir())) == 1


def test_a_cache_that_cannot_be_written(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source.parent / "cache").write_text("a file, where a folder should be", encoding="utf-8")
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(source.parent / "elsewhere"))
    assert native.load(source).answer() == 42
    native.load.cache_clear()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(source))  # a file, too
    with pytest.raises(ValueError, match=r"answer\.cpp was compiled nowhere \(.*cache/specdec: .*; .*specdec-"):
        native.load(source)


def test_a_folder_that_others_can_write_to_is_not_used(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(source.parent / "elsewhere"))
    open_to_all = source.parent / "cache" / "specdec"
    open_to_all.mkdir(parents=True)
    open_to_all.chmod(0o777)
    assert native.load(source).answer() == 42
    assert not list(open_to_all.iterdir())
    (elsewhere,) = (source.parent / "elsewhere").iterdir()
    native.load.cache_clear()
    elsewhere.rename(source.parent / "moved")
    elsewhere.symlink_to(source.parent / "moved")
    with pytest.raises(ValueError, match=r"cache/specdec: not ours alone; .*: not ours alone"):
        native.load(source)


def test_a_damaged_library_is_made_anew(source: Path) -> None:
    folder = source.parent / "cache" / "specdec"
    assert native.load(source).answer() == 42
    (made,) = folder.iterdir()
    made.unlink()
    made.write_bytes(b"half a library")
    native.load.cache_clear()
    assert native.load(source).answer() == 42


@pytest.mark.parametrize("script", ["no program at all", "#!/bin/sh\nsleep 5\n"])
def test_a_compiler_that_does_not_run(source: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = source.parent / "cxx"
    broken.write_text(script, encoding="utf-8")
    broken.chmod(0o700)
    native.find_compiler.cache_clear()
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setattr(native, "SECONDS", 0.2)
    with pytest.warns(UserWarning, match=r"cxx cannot be run \(.*; going on without it"):
        assert not native.available(source)


def test_a_compiler_with_arguments(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = native.find_compiler()
    assert compiler is not None
    native.find_compiler.cache_clear()
    monkeypatch.setenv("CXX", f"{compiler[0]} -DWITH=1")
    source.write_text(SOURCE.replace("42", "42 + WITH"), encoding="utf-8")
    assert native.load(source).answer() == 43


def test_a_compiler_that_fails(source: Path) -> None:
    source.write_text("this is no C++\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"could not compile .*answer\.cpp: .*error") as told:
        native.load(source)
    assert "\n" not in str(told.value)
    with pytest.warns(UserWarning, match="going on without it, which is slower"):
        assert not native.available(source)
    assert not native.available(source)  # said once


def test_no_compiler(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native.find_compiler.cache_clear()
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not native.available(source)
    with pytest.raises(ValueError, match=r"answer\.cpp needs a C\+\+ compiler and found none: install g\+\+"):
        native.load(source)


def test_what_auto_is_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    assert choose_backend("auto", device) == "cpp"
    monkeypatch.setattr(cpp, "available", lambda: False)
    assert choose_backend("auto", device) == "packed"
    with pytest.raises(ValueError, match="attention backend 'cpp' is for the CPU, this model is on cuda"):
        choose_backend("cpp", torch.device("cuda"))
