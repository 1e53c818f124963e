"""C++ that is compiled on the machine it runs on, when it is first used, and kept on disk for the next time."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path

SEARCHED = ("g++", "clang++", "c++")


@cache
def find_compiler() -> str | None:
    """The compiler that CXX names, else the first one there is."""
    named = os.environ.get("CXX")
    return next((found for name in ([named] if named else SEARCHED) if (found := shutil.which(name))), None)


def require_compiler(what: str) -> str:
    """Where it is.

    Raises:
        ValueError: `what` needs one, and there is none.
    """
    if (found := find_compiler()) is None:
        raise no_compiler(what)
    return found


def no_compiler(what: str) -> ValueError:
    """`what` needs a compiler."""
    return ValueError(
        f"{what} needs a C++ compiler and found none: install g++ (Debian, Ubuntu: apt install g++; conda: conda "
        "install gxx) or name one in the environment variable CXX"
    )


@cache
def available(source: Path) -> bool:
    """Whether `load` works, tried once. Says so where there is a compiler that cannot do it."""
    if find_compiler() is None:
        return False
    try:
        load(source)
    except ValueError as error:
        warnings.warn(f"{error}; going on without it, which is slower", stacklevel=2)
        return False
    return True


@cache
def load(source: Path) -> ctypes.CDLL:
    """The library made of one file of C++17 (GCC 9, clang), with this machine's instructions, products and sums fused.

    It is looked for in $XDG_CACHE_HOME/specdec, by a digest of all that it depends on.

    Raises:
        ValueError: there is no compiler, or it fails; the message has its first complaint.
    """
    compiler = require_compiler(source.name)
    native = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
    flags = ["-std=c++17", "-O3", native, "-ffp-contract=fast", "-fPIC", "-shared"]
    flags += ["-fopenmp"] if sys.platform == "linux" else []  # clang on macOS comes without
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    parts = (source.read_text(encoding="utf-8"), compiler, version, " ".join(flags), _machine())
    name = f"{source.stem}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}.so"
    for folder in (_cache(), Path(tempfile.gettempdir()) / f"specdec-{os.getuid()}"):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if folder.stat().st_uid != os.getuid():  # what is loaded from there runs as we do
                continue
            if not (folder / name).is_file():
                _compile([compiler, *flags, str(source)], folder / name)
            return ctypes.CDLL(str(folder / name))
        except OSError:  # not writable, or nothing can be run from there
            continue
    raise ValueError(f"{source.name} could not be compiled: neither {_cache()} nor {tempfile.gettempdir()} can hold it")


def _compile(command: list[str], path: Path) -> None:
    """Several processes may do it at once."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        done = subprocess.run([*command, "-o", str(made)], capture_output=True, text=True, check=False)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            raise ValueError(f"{command[0]} could not compile {command[-1]}: {(said or ['no message'])[0]}")
        made.replace(path)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "specdec"


def _machine() -> str:
    """What `native` stands for: a folder may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.processor())
