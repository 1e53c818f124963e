"""Plain values against annotations, as yamls and command lines give them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedModel

from specdec import registry
from specdec.annotations import fits, hints_of, words
from specdec.core import TreePolicy
from specdec.tree.static import chain


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (int, (3, np.int64(3)), (True, 3.0, "3", None, [3], {"a": 3})),
        (float, (3, 0.5), (True, "0.5", None)),
        (bool, (True,), (1, "true", None)),
        (str, ("a", ""), (1, True, None, ["a"])),
        (int | None, (3, None), ("null", True)),
        (str | Path, ("a", Path("a")), (1,)),
        (Sequence[int] | None, ([], [1, 2], (1,), None), (3, "12", ["a"], [True])),
        (list[list[int]], ([[1], []],), ([1], "a")),
        (tuple[str, ...], (["a"], ()), ("a", [1])),
        (float | Sequence[float], (0.5, [0.5, 1]), ("0.5", ["a"])),
        (PreTrainedModel | None, (None, object(), {"_target_": "a"}), ("tiny", 3, ["tiny"])),
        (TreePolicy, (chain(2),), ("chain", 3)),
        (Any, (3, "a", None), ()),
        (object, (3, "a", None), ()),
        (dict[str, Any], ({},), ()),
    ],
    ids=lambda value: "values" if isinstance(value, tuple) else str(value),  # the same in every process
)
def test_what_fits(hint: Any, good: tuple[Any, ...], bad: tuple[Any, ...]) -> None:
    assert [value for value in good if not fits(value, hint)] == []
    assert [value for value in bad if fits(value, hint)] == []


def test_words() -> None:
    assert words(int | None) == "a whole number or null"
    assert words(Sequence[list[float]]) == "a list, each a list, each a number"
    assert words(PreTrainedModel) == "PreTrainedModel"


@pytest.mark.parametrize("kind", ["drafter", "tree", "acceptance"])
def test_every_setting_of_ours_has_an_annotation_that_is_read(kind: str) -> None:
    for name in registry.names(kind):
        spec = registry.read_yaml(kind, name)
        hints = hints_of(registry.find_target(spec["_target_"]))
        assert set(spec) - {"_target_"} <= set(hints), name


def test_types_are_looked_at_and_names_stand_for_models(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="setting 'max_ngram' of drafter is '3'; expected a whole number"):
        registry.build("drafter", "ngram", max_ngram="3")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        registry.build("drafter", "draft_model", model=str(tmp_path))
    assert registry.build("drafter", "draft_model", model="tiny-draft").vocab_size > 1
