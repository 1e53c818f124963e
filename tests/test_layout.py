"""The repository's shape: one import name, imports that only go down, a wheel that holds what it must."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("drafters", "kernels", "experiments", "conf")
SOURCE_FOLDERS = ("specdec", *LINKED, "tests", "benchmarks")

# What a module of specdec may import: its own level and those below. `circles` below does the rest.
LEVELS = (
    {"kernels", "noise", "conf", "annotations"},
    {"tree", "sampling", "core"},  # core imports tree.token_tree, tree policies are written against core's contracts
    {"acceptance", "cache"},
    {
        *(
            "attention",
            "attention_operator",
            "packing",
            "chunks",
            "probe",
            "inspection",
            "partial",
            "buckets",
            "packed_weights",
        ),
        *("compiled", "exact", "target", "hub", "quantization", "registry", "loading", "heads"),
    },
    {
        *("request_stats", "metrics", "phase_clock", "request", "step", "capture", "decode", "pages", "scheduler"),
        *("serving", "serving_settings", "arrivals", "turn", "free_memory"),
    },
    {"inputs", "text", "many", "engine", "decoder", "api", "hf"},
    {"specdec"},  # specdec/__init__.py
)
# Where that says too little.
ONLY = {
    "kernels": {"kernels", "noise"},  # a kernel is tensors in, tensors out; its noise is the loop's
    "drafters": {
        *("drafters", "tree", "sampling", "noise", "core", "target", "registry", "loading", "heads", "kernels"),
        *("attention", "cache", "packing", "inspection"),  # for heads with layers of their own
        "partial",  # for those that draft with some of the target's
    },
}
EVERYTHING = {"experiments"}


@cache
def sources() -> dict[str, Path]:
    """Every Python file under the name it is imported by; the symlinked folders once, as `specdec.<folder>`."""
    files = {}
    for folder in SOURCE_FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            relative = path.relative_to(ROOT)
            if folder == "specdec" and len(relative.parts) > 1 and relative.parts[1] in LINKED:
                continue
            parts = (("specdec",) if folder in LINKED else ()) + relative.with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imports(module: str, *, typing_only: bool = True) -> Iterator[tuple[str, int]]:
    """(Full name, line) of all that a module imports, at its top or inside a function.

    Args:
        module: A key of `sources()`.
        typing_only: Count what is imported under `if TYPE_CHECKING:` too.
    """
    path = sources()[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def walk(node: ast.AST) -> Iterator[tuple[str, int]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            start = parents[: len(parents) - node.level + 1] if node.level else []
            origin = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{origin}.{alias.name}"
                yield (submodule if is_module(submodule) else origin), node.lineno
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING") and not typing_only:
            for statement in node.orelse:
                yield from walk(statement)
        else:
            for child in ast.iter_child_nodes(node):
                yield from walk(child)

    yield from walk(ast.parse(path.read_text(encoding="utf-8"), str(path)))


def needed(module: str) -> Iterator[str]:
    """All modules that run when this one is imported: what it imports, and the packages which those lie in."""
    for name, _ in imports(module, typing_only=False):
        if name != module:
            yield name
        while (name := name.rpartition(".")[0]) and not f"{module}.".startswith(f"{name}."):
            yield name


def is_module(name: str) -> bool:
    """True for a module or package of this repository; kernels/, without an `__init__.py`, is one as well."""
    return name in sources() or any(other.startswith(name + ".") for other in sources())


def component(module: str) -> str:
    """`specdec.tree.static` belongs to `tree`, and `specdec` itself to `specdec`."""
    return module.split(".")[1] if "." in module else module


def library() -> list[str]:
    return [module for module in sources() if module.split(".")[0] == "specdec"]


def allowed(source: str) -> set[str]:
    every = set().union(*LEVELS, ONLY, EVERYTHING)
    if source in EVERYTHING:
        return every
    if source in ONLY:
        return ONLY[source]
    for level, names in enumerate(LEVELS):
        if source in names:
            return set().union(*LEVELS[: level + 1])
    raise AssertionError(f"specdec.{source} has no place in the table of tests/test_layout.py: give it a level")


def where(module: str, line: int) -> str:
    return f"{sources()[module].relative_to(ROOT)}:{line}"


def test_the_four_folders_are_symlinks() -> None:
    for name in LINKED:
        link = ROOT / "specdec" / name
        assert link.is_symlink(), f"specdec/{name} must be a symlink to ../{name} (git: core.symlinks=true)"
        assert link.readlink() == Path("..") / name


def test_kernels_is_no_package() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists(), (
        "kernels/__init__.py would be imported by transformers, which probes for the distribution called `kernels`"
    )


def test_nobody_imports_the_top_level_folders() -> None:
    found = [
        f"{where(module, line)} imports {name}; it is specdec.{name}"
        for module in sources()
        for name, line in imports(module)
        if name.split(".")[0] in LINKED
    ]
    assert not found, "\n".join(found)


def test_imports_only_go_down() -> None:
    found = [
        f"{where(module, line)}: {component(module)} may not import {name}"
        for module in library()
        for name, line in imports(module)
        if name.split(".")[0] == "specdec" and component(name) not in allowed(component(module))
    ]
    assert not found, "\n".join(found)


def test_no_circles() -> None:
    graph = {module: set(needed(module)) & set(sources()) for module in library()}
    done: set[str] = set()

    def circle(module: str, trail: tuple[str, ...]) -> tuple[str, ...] | None:
        if module in trail:
            return (*trail[trail.index(module) :], module)
        if module not in done:
            for name in sorted(graph[module]):
                if found := circle(name, (*trail, module)):
                    return found
            done.add(module)
        return None

    for module in graph:
        found = circle(module, ())
        assert not found, " -> ".join(found or ())


IMPORT_AND_TELL = """
import builtins, sys
wanted, real = set(), builtins.__import__
def spy(name, globals=None, locals=None, fromlist=(), level=0):
    if not level and globals and str(globals.get("__name__")).split(".")[0] == "specdec":
        wanted.add(name.split(".")[0])
    return real(name, globals, locals, fromlist, level)
builtins.__import__ = spy
import specdec
assert "torch" not in sys.modules
from specdec import *  # every public name: they are imported when they are first used
assert set(specdec.__all__) <= {*globals(), "__version__"} & {*dir(specdec)}
print(*(wanted - sys.stdlib_module_names))
print(*(name for name in ("hydra", "omegaconf", "wandb", "matplotlib", "polars") if name in sys.modules))
"""


def test_importing_specdec_is_light() -> None:
    child = subprocess.run(
        [sys.executable, "-c", IMPORT_AND_TELL], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    direct, heavy = (set(line.split()) for line in child.stdout.splitlines()[-2:])
    # Not "triton is in sys.modules": transformers imports torch._dynamo, which imports it where it is installed.
    ours = {"specdec", "torch", "transformers", "huggingface_hub", "safetensors", "tokenizers", "numpy", "tqdm", "yaml"}
    assert {"torch", "transformers"} <= direct <= ours
    assert not heavy, f"`import specdec` ends up importing {heavy}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names in the wheel, built from a copy: a build/ folder in the tree would leak old files into it."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    copy.mkdir()
    for name in ("specdec", *LINKED):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder)]
    built = subprocess.run([*pip, str(copy)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return zipfile.ZipFile(next(folder.glob("*.whl"))).namelist()


def test_the_wheel_installs_one_name(wheel: list[str]) -> None:
    top = {name.split("/")[0] for name in wheel}
    assert {name for name in top if not name.endswith(".dist-info")} == {"specdec"}


def test_the_wheel_holds_all_of_the_library(wheel: list[str]) -> None:
    expected = {
        str(Path(folder, file).relative_to(ROOT))
        for folder, _, files in os.walk(ROOT / "specdec", followlinks=True)
        for file in files
        if not file.startswith(".") and not file.endswith((".pyc", ".pyo"))
    }
    assert "specdec/py.typed" in expected
    assert any(name.startswith("specdec/kernels/") for name in expected)
    missing = sorted(expected - set(wheel))
    assert not missing, f"not in the wheel, see package-data in pyproject.toml: {missing}"
