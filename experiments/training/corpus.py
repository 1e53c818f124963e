"""Python source of the standard library and of installed packages, as training text with held-out files.

Nothing is downloaded: the corpus is whatever the constraints file installed, so another machine gets the same text.
Each source is recorded with its version and licence, because a model card has to say what the model saw.
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

HELD_OUT_PER_MILLE = 20
SIZE_BYTES = (400, 120_000)


@dataclass(frozen=True, slots=True)
class Document:
    """One source file. `path` is relative to its source ("stdlib/json/decoder.py"): it never names a machine."""

    path: str
    text: str

    @property
    def held_out(self) -> bool:
        """Decided by the path alone, so that the split is the same on every machine and for every run."""
        return int(hashlib.sha256(self.path.encode()).hexdigest()[:8], 16) % 1000 < HELD_OUT_PER_MILLE


@dataclass(frozen=True, slots=True)
class Source:
    """Where documents came from, for the model card."""

    name: str
    version: str
    licence: str
    files: int
    bytes: int


def read_corpus(packages: Sequence[str]) -> tuple[list[Document], list[Source]]:
    """Every readable Python file of `packages` ("stdlib" or a distribution's name), each text once, in a fixed order.

    Raises:
        ValueError: a package is not installed.
    """
    documents: list[Document] = []
    sources: list[Source] = []
    seen: set[str] = set()
    for package in packages:
        kept = [d for d in _read_package(package) if not (d.text in seen or seen.add(d.text))]  # type: ignore[func-returns-value]
        documents += kept
        sources.append(_describe(package, kept))
    return documents, sources


def _read_package(package: str) -> list[Document]:
    documents = []
    for path, file in sorted(_files(package)):
        if not SIZE_BYTES[0] <= file.stat().st_size <= SIZE_BYTES[1]:
            continue
        try:
            text = file.read_text(encoding="ascii")
        except UnicodeDecodeError:
            continue  # mostly tables of characters; the tokenizer is for ASCII source
        if max(map(len, text.splitlines()), default=0) <= 300:  # longer lines are generated data, not code
            documents.append(Document(path, text))
    return documents


def _files(package: str) -> list[tuple[str, Path]]:
    if package == "stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
        found = (f for f in root.rglob("*.py") if not {"site-packages", "lib2to3", "idlelib"} & set(f.parts))
        return [(f"stdlib/{f.relative_to(root).as_posix()}", f) for f in found]
    try:
        files = metadata.distribution(package).files or []
    except metadata.PackageNotFoundError:
        raise ValueError(
            f"corpus package {package!r} is not installed; install it or take it out of data.packages"
        ) from None
    return [(f.as_posix(), Path(str(f.locate()))) for f in files if f.suffix == ".py"]


def _describe(package: str, documents: Sequence[Document]) -> Source:
    size = sum(len(d.text) for d in documents)
    if package == "stdlib":
        return Source("Python standard library", sys.version.split()[0], "PSF-2.0", len(documents), size)
    about: Any = metadata.metadata(package)  # its protocol lacks `get` before Python 3.12
    licence = about.get("License-Expression") or about.get("License") or ""
    classifiers = [c.split(" :: ")[-1] for c in about.get_all("Classifier") or [] if c.startswith("License ::")]
    if not licence or len(licence) > 60:  # some packages paste the whole text
        licence = ", ".join(classifiers) or "see the package"
    return Source(package, metadata.version(package), licence, len(documents), size)
