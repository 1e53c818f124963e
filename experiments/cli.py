"""The `specdec` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

USAGE = """specdec: speculative decoding research

  specdec run experiment=demo        compare methods with plain decoding; `specdec run --help` lists what there is
  specdec run -m drafter=a,b ...     every combination, a folder each; `specdec run resume=DIR` goes on with it
  specdec run from=DIR               repeat a finished run, and say whether it came out the same
  specdec train experiment=...       make a shipped model again, or one like it
  specdec export drafter=...         write a head or a draft model as another engine reads it
  specdec report DIR...              write report.html of finished runs again; several side by side, and as one table
  specdec trace DIR...               write the pages of what `specdec run trace=html` recorded again
  specdec bench ...                  what kernels, steps, drafters and rules cost; `specdec bench` lists all
  specdec --version

Settings are given as name=value; conf/ in the package holds them all.
Exit status: 0 done, 1 a mistake, 2 nothing asked for, 3 a method's losslessness check failed,
4 a run that was repeated came out otherwise, 5 cells of a sweep failed, 130 stopped.
"""
EXTRA = 'pip install "specdec[experiments]"'


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit code, see USAGE. Every mistake is one line on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        import specdec

        print(f"specdec {specdec.__version__}")
        return 0
    commands: dict[str, Callable[[list[str]], int]] = {
        "run": _run,
        "train": _train,
        "export": _export,
        "report": _report,
        "trace": _trace,
        "bench": _bench,
    }
    name, rest = arguments[0], arguments[1:]
    try:
        if name not in commands:
            from specdec.registry import unknown

            raise unknown("command", name, commands)
        return commands[name](rest)
    except ModuleNotFoundError as error:
        if os.environ.get("SPECDEC_TRACEBACK") or (error.name or "").startswith("specdec"):
            raise
        return _fail(f"`specdec {name}` needs the package {error.name}: {EXTRA}", 1)
    except ValueError as error:
        if os.environ.get("SPECDEC_TRACEBACK"):
            raise
        return _fail(" ".join(str(error).split()), 1)
    except SystemExit as done:  # Hydra's --help
        return int(done.code or 0)
    except BrokenPipeError:  # the reader has seen enough, as in `specdec run --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a full disk, a folder that cannot be written
        if os.environ.get("SPECDEC_TRACEBACK"):
            raise
        told = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
        return _fail("; ".join([" ".join(told.split()), *getattr(error, "__notes__", [])]), 1)
    except KeyboardInterrupt as stopped:
        return _fail(str(stopped) or "stopped", 130)
    return 0


def _fail(message: str, code: int) -> int:
    print(f"specdec: {message}", file=sys.stderr)
    return code


def _run(arguments: list[str]) -> int:
    from specdec.experiments.hydra_app import launch
    from specdec.experiments.resume import resumed

    repeated = any(argument.startswith("from=") for argument in arguments)
    if repeated:
        unequal, reproduced = _repeat(arguments)
        missing = 0
    else:
        for plan in resumed(arguments):  # of a sweep, the last knows what became of all cells
            outcome = launch("run", plan)
        unequal, missing, reproduced = list(outcome.unequal), outcome.missing, True
    if unequal:
        return _fail(f"the losslessness check failed for {', '.join(unequal)}: their texts are not the target's", 3)
    if missing:
        return 5
    return 0 if reproduced else _fail("the run was not reproduced: texts or accepted lengths differ", 4)


def _repeat(arguments: list[str]) -> tuple[list[str], bool]:
    from rich.console import Console

    from specdec.experiments.repeat import repeat
    from specdec.experiments.sweep import unequal

    summary, reproduced = repeat(arguments, Console(highlight=False))
    return unequal(summary), reproduced


def _train(arguments: list[str]) -> int:
    from specdec.experiments.hydra_app import launch

    launch("train", arguments)
    return 0


def _export(arguments: list[str]) -> int:
    from specdec.experiments.hydra_app import launch

    launch("export", arguments)
    return 0


def _report(arguments: list[str]) -> int:
    from pathlib import Path

    if not arguments or arguments[0] in ("-h", "--help"):
        print("specdec report DIR...               write report.html of finished runs again; of several also")
        print("                                    results.parquet and results.html, all of them side by side")
        print("specdec report DIR... into=FOLDER   those two go there, and not where the runs are")
        return 0
    into = [argument.removeprefix("into=") for argument in arguments if argument.startswith("into=")]
    folders = [Path(argument) for argument in arguments if not argument.startswith("into=")]
    if not folders:
        raise ValueError("into= was given and no run; give the folders of runs as well")
    from specdec.experiments.run_folder import from_here
    from specdec.experiments.sweep import is_sweep

    if len(folders) == 1 and not into and not is_sweep(folders[0]):
        from specdec.experiments.report import read_finished, write_report

        print(from_here(write_report(folders[0], read_finished(folders[0]))))
        return 0
    from specdec.experiments.report.joint import write_joint

    written, problems = write_joint(folders, Path(into[-1]) if into else None)
    print(*map(from_here, written), sep="\n")
    for problem in problems:
        print(f"specdec: {problem}", file=sys.stderr)
    return 0


def _trace(arguments: list[str]) -> int:
    from pathlib import Path

    if not arguments or arguments[0] in ("-h", "--help"):
        print("specdec trace DIR...   write trace.html and trace.perfetto.json of runs with trace=html again")
        return 0
    from specdec.experiments.config import TRACES
    from specdec.experiments.run_folder import from_here
    from specdec.experiments.trace import render

    for folder in map(Path, arguments):
        print(*map(from_here, render(folder, TRACES)), sep="\n")
    return 0


def _bench(arguments: list[str]) -> int:
    from specdec.experiments.bench.command import bench  # needs no Hydra

    bench(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
