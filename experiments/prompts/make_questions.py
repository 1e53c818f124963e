"""Make question.jsonl and sources.json, byte for byte, out of the installed packages: what training never saw.

    python -m specdec.experiments.prompts.make_questions

Code, tests, prose and the functions to edit come from files the training split holds out, at the versions that
constraints.txt pins. The standard library is left out, since nothing pins that.

    python -m specdec.experiments.prompts.make_questions --training outputs/questions.jsonl

writes many more of the same kinds out of the files that training has seen, for heads to learn from.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from specdec.experiments.prompts import passages
from specdec.experiments.prompts.passages import Candidate
from specdec.experiments.training.corpus import read_corpus

PACKAGES = (
    "networkx numpy matplotlib pytest huggingface_hub accelerate rich jinja2 polars hydra-core omegaconf pydantic "
    "fonttools pillow"
).split()
CATEGORIES = {
    "code": passages.code,
    "tests": passages.tests,
    "docs": passages.docs,
    "data": passages.data,
    "edits": passages.edits,
}
PER_CATEGORY = 20
PER_FILE = 4  # of one category, so that no file dominates
SEED = 20_260  # training draws its tables with seeds 0, 1, ...
TRAINING_PER_CATEGORY = 400
TRAINING_SEED = 2


def make_questions() -> tuple[str, str]:
    """The contents of question.jsonl and of sources.json."""
    documents, _ = read_corpus(PACKAGES)
    held_out = [d for d in documents if d.held_out]
    seen = "\0".join(d.text for d in documents if not d.held_out)
    rng = random.Random(SEED)
    chosen = []
    for category, make in CATEGORIES.items():
        candidates = [c for _ in range(3) for c in make(held_out, rng)]  # other cuts of the same passages
        chosen += [(category, c) for c in choose(candidates, seen, rng)]
    sources = {str(number): c.source for number, (_, c) in enumerate(chosen, 1)}
    return _lines(chosen), json.dumps(sources, indent=1) + "\n"


def make_training_questions(per_category: int = TRAINING_PER_CATEGORY) -> str:
    """The same kinds of prompts out of the files that training has seen, in Spec-Bench's form.

    Raises:
        ValueError: there are too few.
    """
    documents, _ = read_corpus(PACKAGES)
    seen = [d for d in documents if not d.held_out]
    rng = random.Random(TRAINING_SEED)
    chosen: list[tuple[str, Candidate]] = []
    for category, make in CATEGORIES.items():
        candidates: list[Candidate] = []
        while len(candidates) < per_category:
            more = [c for c in make(seen, rng) if c.fits]
            if not more:
                raise ValueError(f"found no prompts of the category {category} in {', '.join(PACKAGES)}")
            candidates += more
        rng.shuffle(candidates)
        chosen += [(category, c) for c in candidates[:per_category]]
    rng.shuffle(chosen)
    return _lines(chosen)


def _lines(chosen: Sequence[tuple[str, Candidate]]) -> str:
    rows = (
        {"question_id": number, "category": category, "turns": [c.prompt], "reference": [c.reference]}
        for number, (category, c) in enumerate(chosen, 1)
    )
    return "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows)


def choose(candidates: list[Candidate], seen: str, rng: random.Random) -> list[Candidate]:
    """`PER_CATEGORY` of them at random: each text once, few of one file, nothing that training text contains.

    Raises:
        ValueError: there are too few, so the installed packages are not those of constraints.txt.
    """
    rng.shuffle(candidates)
    per_file: Counter[str] = Counter()
    chosen: list[Candidate] = []
    for candidate in candidates:
        file = candidate.source.partition(":")[0]
        if not candidate.fits or (file and per_file[file] == PER_FILE):
            continue
        if any(_same_passage(candidate, c) for c in chosen) or _overlaps(candidate, seen):
            continue
        per_file[file] += 1
        chosen.append(candidate)
        if len(chosen) == PER_CATEGORY:
            return chosen
    raise ValueError(
        f"found {len(chosen)} prompts of a category where {PER_CATEGORY} are wanted; install the packages of "
        "constraints.txt"
    )


def _same_passage(one: Candidate, other: Candidate) -> bool:
    """Whether both end at the same line of the same file, wherever they begin and are cut."""
    same_file = one.source.partition(":")[0] == other.source.partition(":")[0]
    return bool(one.source) and same_file and one.source.rpartition("-")[2] == other.source.rpartition("-")[2]


def _overlaps(candidate: Candidate, seen: str) -> bool:
    """Whether the lines around the cut, or a long line to edit, are in a training file too (packages copy code)."""
    text = candidate.prompt
    if text.startswith("# Before:\n"):
        body = text.removeprefix("# Before:\n").partition("\n\n# After renaming")[0].splitlines()
        return any(
            f"\n{indent}{line}\n" in seen for indent in ("", "    ", "        ") for line in body if len(line) > 70
        )
    around = "\n".join(text.splitlines()[-3:]) + "\n".join(candidate.reference.splitlines()[:3])
    return around in seen or text in seen


def main() -> None:
    """Write both files beside this one, or the file that is asked for."""
    parser = argparse.ArgumentParser(description="Make the shipped prompts, or prompts to train heads with.")
    parser.add_argument("--training", type=Path, metavar="FILE", help="write prompts out of training files there")
    file = parser.parse_args().training
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(make_training_questions(), encoding="ascii")
        print(f"wrote {file}: {len(CATEGORIES) * TRAINING_PER_CATEGORY} prompts")
        return
    folder = Path(str(resources.files(__package__)))
    for name, text in zip(("question.jsonl", "sources.json"), make_questions(), strict=True):
        (folder / name).write_text(text, encoding="ascii")
        print(f"wrote {name}: {len(text)} bytes")


if __name__ == "__main__":
    main()
