"""Names to drafters, trees and rules: from yamls, dotted paths and objects, and what none of them may run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from specdec import registry
from specdec.drafters.ngram import NGram
from specdec.tree.static import StaticTree

from .models import make_model


@pytest.mark.parametrize("kind", ["tree", "acceptance"])
def test_every_yaml_builds(kind: str) -> None:
    assert registry.names(kind)
    for name in registry.names(kind):
        assert registry.build(kind, name) is not None


def test_every_drafter_yaml_names_settings_that_exist() -> None:
    for name in registry.names("drafter"):
        spec = yaml.safe_load((registry.CONF / "drafter" / f"{name}.yaml").read_text())
        assert registry.find_target(spec["_target_"])


def test_settings_over_a_yaml() -> None:
    drafter = registry.build("drafter", "ngram", max_ngram=5)
    assert isinstance(drafter, NGram)
    assert drafter.max_ngram == 5
    with pytest.raises(ValueError, match=r"unknown setting of drafter .* 'max_gram'. Did you mean 'max_ngram'"):
        registry.build("drafter", "ngram", max_gram=5)


@pytest.fixture
def own_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A conf folder of the test's own."""
    monkeypatch.setattr(registry, "CONF", tmp_path)
    (tmp_path / "drafter").mkdir()
    return tmp_path / "drafter"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_target_: specdec.drafters.ngram.NGram\nmax_ngran: 2\n", "'max_ngran'. Did you mean 'max_ngram'[?] Known: "),
        ("max_ngram: 2\n", "drafter has no _target_; got the keys max_ngram"),
        ("_target_: subprocess.run\nargs: ['true']\n", "_target_ 'subprocess.run' would run code from outside specdec"),
        ("_target_: specdec.drafters.draft_model.DraftModel\nmodel: {_target_: os.getcwd}\n", "'os.getcwd' would run"),
        ("- a\n- b\n", r"mine\.yaml .*expected settings"),
        ("", r"mine\.yaml .*expected settings"),
        ("_target_: [unclosed\n", r"mine\.yaml is not valid yaml"),
    ],
)
def test_wrong_yamls(own_conf: Path, text: str, message: str) -> None:
    (own_conf / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        registry.build("drafter", "mine")


def test_somebody_elses_half_written_yaml_stops_nobody(own_conf: Path) -> None:
    (own_conf / "a_draft.yaml").write_text("_target_: [unclosed\n")
    (own_conf / "mine.yaml").write_text("_target_: specdec.drafters.ngram.NGram\n")
    assert registry.yaml_name("drafter", {"_target_": "specdec.drafters.ngram.NGram"}) == "mine"


def test_a_yaml_cannot_make_python_objects(own_conf: Path) -> None:
    (own_conf / "mine.yaml").write_text("_target_: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ValueError, match=r"mine\.yaml is not valid yaml"):
        registry.build("drafter", "mine")


def test_targets_from_elsewhere_run_when_allowed() -> None:
    spec = {"_target_": "collections.OrderedDict"}
    with pytest.raises(ValueError, match=r"pass allow_targets=\['collections.OrderedDict'\]"):
        registry.build("drafter", spec)
    for allowed in (["collections.OrderedDict"], ["collections"], ("x", "collections")):
        assert registry.build("drafter", spec, allow_targets=allowed) == {}
    with pytest.raises(ValueError, match="would run code from outside specdec"):
        registry.build("drafter", spec, allow_targets=["collect"])  # a beginning of a word is not a package


@pytest.mark.parametrize(
    "path",
    [
        "specdec.registry.yaml.unsafe_load",
        "specdec.registry.importlib.import_module",
        "specdec.decoder.torch.load",
        "specdec.loading.AutoTokenizer",
        "specdec.loading.Path",
        "specdec.registry.yaml",
    ],
)
def test_what_specdec_imports_is_not_specdec(path: str) -> None:
    with pytest.raises(
        ValueError, match=r"was not found|would run code from outside specdec|expected a class or a function"
    ):
        registry.build("drafter", path)


def test_nested_targets_and_names_of_trees() -> None:
    drafter: dict[str, Any] = {
        "_target_": "specdec.drafters.draft_model.DraftModel",
        "model": make_model("llama"),
        "tree": {"_target_": "specdec.tree.static.chain", "length": 2},
    }
    assert registry.build("drafter", drafter).policy.depth == 2
    assert registry.build("drafter", {**drafter, "tree": "chain"}).policy.depth == 4
    assert isinstance(registry.build("drafter", {**drafter, "tree": "static"}).policy, StaticTree)
    with pytest.raises(ValueError, match=r"unknown tree 'chan'. Did you mean 'chain'"):
        registry.build("drafter", {**drafter, "tree": "chan"})


def test_what_a_yaml_leaves_open_has_to_be_given() -> None:
    with pytest.raises(ValueError, match=r"Hydra\) needs the setting 'head'; add it to the yaml or the call"):
        registry.build("drafter", "hydra")
