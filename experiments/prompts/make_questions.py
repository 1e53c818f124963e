"""Make question.jsonl and sources.json, byte for byte, out of the installed packages: what training never saw.

    python -m specdec.experiments.prompts.make_questions

Code, tests, prose and the functions to edit come from files the training split holds out, at the versions that
constraints.txt pins. The standard library is left out, since nothing pins that.
"""

from __future__ import annotations

import json
import random
from collections import Counter
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


def make_questions() -> tuple[str, str]:
    """The contents of question.jsonl and of sources.json."""
    documents, _ = read_corpus(PACKAGES)
    held_out = [d for d in documents if d.held_out]
    seen = "\0".join(d.text for d in documents if not d.held_out)
    rng = random.Random(SEED)
    questions: list[dict[str, object]] = []
    sources: dict[str, str] = {}
    for category, make in CATEGORIES.items():
        candidates = [c for _ in range(3) for c in make(held_out, rng)]  # other cuts of the same passages
        for chosen in choose(candidates, seen, rng):
            number = len(questions) + 1
            questions.append(
                {
                    "question_id": number,
                    "category": category,
                    "turns": [chosen.prompt],
                    "reference": [chosen.reference],
                }
            )
            sources[str(number)] = chosen.source
    lines = "".join(json.dumps(q, ensure_ascii=True) + "\n" for q in questions)
    return lines, json.dumps(sources, indent=1) + "\n"


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
    """Write both files beside this one."""
    folder = Path(str(resources.files(__package__)))
    for name, text in zip(("question.jsonl", "sources.json"), make_questions(), strict=True):
        (folder / name).write_text(text, encoding="ascii")
        print(f"wrote {name}: {len(text)} bytes")


if __name__ == "__main__":
    main()
