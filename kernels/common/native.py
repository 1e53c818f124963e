"""C++ that is compiled on the machine it runs on, when it is first used, and kept on disk for the next time."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

SEARCHED = ("g++", "clang++", "c++")
SECONDS = 120  # that a compiler may take


@cache
def find_compiler() -> tuple[str, ...] | None:
    """The command that CXX names, else the first compiler there is."""
    named = shlex.split(os.environ.get("CXX", ""))
    for name, *arguments in [named] if named else [[name] for name in SEARCHED]:
        if found := shutil.which(name):
            return found, *arguments
    return None


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

    It is looked for in $XDG_CACHE_HOME/specdec (~/.cache/specdec), or else in a folder of this user's among the
    temporary ones, by a digest of all that it depends on.

    Raises:
        ValueError: there is no compiler, it fails, or nothing can be kept; the message has its first complaint.
    """
    if (compiler := find_compiler()) is None:
        raise no_compiler(source.name)
    native = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
    flags = ["-std=c++17", "-O3", native, "-ffp-contract=fast", "-fPIC", "-shared"]
    flags += ["-fopenmp"] if sys.platform == "linux" else []  # clang on macOS comes without
    version = _run([*compiler, "--version"]).stdout
    parts = (source.read_text(encoding="utf-8"), *compiler, version, *flags, _machine())
    name = f"{source.stem}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}.so"
    tried = []
    for folder in _folders():
        try:
            if _ours(folder):
                return _made([*compiler, *flags, str(source)], folder / name)
            tried.append(f"{folder}: not ours alone")
        except OSError as error:  # not writable, or nothing can be run from there
            tried.append(f"{folder}: {error.strerror or error}")
    raise ValueError(f"{source.name} was compiled nowhere ({'; '.join(tried) or 'no folder for it'})")


def _made(command: Sequence[str], path: Path) -> ctypes.CDLL:
    if path.is_file():
        try:
            return ctypes.CDLL(str(path))
        except OSError:  # damaged
            path.unlink()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # several processes may do it at once
        made = Path(folder) / path.name
        done = _run([*command, "-o", str(made)])
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            raise ValueError(f"{command[0]} could not compile {command[-1]}: {(said or ['no message'])[0]}")
        made.replace(path)
    return ctypes.CDLL(str(path))


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"{command[0]} cannot be run ({error})") from error


def _folders() -> list[Path]:
    found = [Path(tempfile.gettempdir()) / f"specdec-{os.getuid() if hasattr(os, 'getuid') else 'user'}"]
    with suppress(RuntimeError):  # there is no home
        found.insert(0, Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "specdec")
    return found


def _ours(folder: Path) -> bool:
    """Whether nobody else can put something there: what is loaded from it runs as we do."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    about = folder.lstat()
    if not hasattr(os, "getuid"):
        return stat.S_ISDIR(about.st_mode)
    return stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid() and not about.st_mode & 0o022


def _machine() -> str:
    """What `native` stands for: a folder may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.node()} {platform.processor()}"
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.processor())
