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
    monkeypatch.setattr(native, "_compile", lambda *_: pytest.fail("it was there"))
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
    (source.parent / "elsewhere" / "nowhere").parent.mkdir(exist_ok=True)
    native.load.cache_clear()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(source))  # a file, too
    with pytest.raises(ValueError, match=r"answer\.cpp could not be compiled: neither .* nor .* can hold it"):
        native.load(source)


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
