"""Small made-up documents that teach a tiny model to copy: edits of real functions, and one table in several formats.

Real source alone gives too few of them for 10^7 tokens, and copying is what the prompt-lookup drafters live on.
"""

from __future__ import annotations

import csv
import io
import json
import keyword
import random
import re
import textwrap
from collections.abc import Iterator, Sequence

NAMES = (
    "alice bob carol dave erin frank grace heidi ivan judy mallory niaj olivia peggy quentin rupert sybil trent"
).split()
FIELDS = "id name age city score price count status date owner size level weight color kind active".split()
VALUES = "london paris oslo lima cairo tokyo open closed new old red green blue small large true false low high".split()
FUNCTION = re.compile(r"^( *)def \w+\(.*?(?=^\1\S|\Z)", re.MULTILINE | re.DOTALL)
WORD = re.compile(r"\b[a-z_][a-z0-9_]{2,}\b")


def documents(texts: Sequence[str], count: int, seed: int) -> Iterator[str]:
    """`count` documents, two edits of functions found in `texts` for every table."""
    rng = random.Random(seed)
    for i in range(count):
        yield table(rng) if i % 3 == 2 else edit(rng, texts)


def edit(rng: random.Random, texts: Sequence[str]) -> str:
    """A function, an instruction in a comment, and the function again with the instruction carried out."""
    while True:
        found = FUNCTION.search(rng.choice(texts))
        if found and 120 <= len(found.group()) <= 1500:
            break
    before = textwrap.dedent(found.group()).rstrip()
    words = [w for w in WORD.findall(before) if not keyword.iskeyword(w)]
    repeated = sorted({w for w in words if words.count(w) > 1}) or ["self"]
    old, new = rng.choice(repeated), rng.choice(NAMES) + "_" + rng.choice(FIELDS)
    after = re.sub(rf"\b{re.escape(old)}\b", new, before)
    return f"# Before:\n{before}\n\n# After renaming `{old}` to `{new}`:\n{after}\n"


def table(rng: random.Random) -> str:
    """The same random records as JSON, as CSV and as a Python list, in random order."""
    fields = rng.sample(FIELDS, rng.randint(2, 5))
    rows = [{f: _value(rng, f) for f in fields} for _ in range(rng.randint(3, 8))]
    out = io.StringIO()
    writer = csv.DictWriter(out, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    python = "records = [\n" + "".join(f"    {row!r},\n" for row in rows) + "]\n"
    views = [
        "# data.json\n" + json.dumps(rows, indent=2) + "\n",
        "# data.csv\n" + out.getvalue(),
        "# data.py\n" + python,
    ]
    rng.shuffle(views)
    return "\n".join(views[: rng.randint(2, 3)])


def _value(rng: random.Random, field: str) -> object:
    if field in ("id", "age", "count", "size", "level"):
        return rng.randint(1, 99)
    if field in ("score", "price", "weight"):
        return round(rng.uniform(0, 100), 2)
    return rng.choice(NAMES) if field in ("name", "owner") else rng.choice(VALUES)
