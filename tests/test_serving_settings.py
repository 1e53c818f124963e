"""How many pages a run gets."""

from __future__ import annotations

import pytest
import torch

from specdec.cache import Paging
from specdec.core import own_kv_bytes
from specdec.drafters.draft_model import DraftModel
from specdec.drafters.hybrid import Hybrid
from specdec.drafters.ngram import NGram
from specdec.drafters.none import NoDrafter
from specdec.serving_settings import ServingSettings
from specdec.target import Target

from .models import make_model

CPU = torch.device("cpu")


@pytest.fixture
def target() -> Target:
    return Target(make_model())


def test_all_slots_or_what_memory_holds(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = NGram(max_nodes=4)
    page = 16 * target.kv_bytes
    wanted = 3 * -(-(100 + 2 * 4) // 16)
    assert ServingSettings(3, 100, page=16).paging(target, drafter) == Paging(wanted, 16)
    assert ServingSettings(3, 100, 5 * page + 1, 16).paging(target, drafter) == Paging(5, 16)
    assert ServingSettings(3, 100, page=500).paging(target, drafter) == Paging(3, 108)
    assert ServingSettings(3, 100).paging(target, drafter, whole=True) == Paging(3, 108)
    monkeypatch.setattr("specdec.serving_settings.free_bytes", lambda device: 8 * page)
    assert ServingSettings(3, 100, 0.75, 16).paging(target, drafter) == Paging(6, 16)
    assert ServingSettings(3, 100, None, 16).paging(target, drafter) == Paging(4, 16)  # half of it


def test_what_the_last_run_has_is_given_back(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target keeps its KV open after `generate`, and where steps are captured: the pool is no smaller for it."""
    all_of_it = 64 * 16 * target.kv_bytes
    monkeypatch.setattr("specdec.serving_settings.free_bytes", lambda device: all_of_it - target.cache.nbytes)
    settings, drafter = ServingSettings(3, 100, 0.5, 16), NoDrafter()
    wanted = settings.paging(target, drafter)
    target.open(3, 100, 1, wanted)
    assert target.cache.nbytes > 0
    assert settings.paging(target, drafter) == wanted


def test_a_drafters_own_kv_is_of_the_same_memory(target: Target) -> None:
    model = DraftModel(make_model(seed=3))
    drafts, page = own_kv_bytes(model, 2, 100, CPU), 16 * target.kv_bytes
    assert drafts > 0
    assert own_kv_bytes(NGram(), 2, 100, CPU) == 0
    settings = ServingSettings(2, 100, drafts + 3 * page, 16)
    assert settings.paging(target, model) == Paging(3, 16)
    assert settings.paging(target, NGram()).pages > 3
    with pytest.raises(ValueError, match=f"of which the drafter's own takes {drafts} for 2 x 100 tokens, .* slots"):
        ServingSettings(2, 100, drafts + page - 1, 16).paging(target, model)
    with pytest.raises(ValueError, match="give generate_many more memory, or smaller pages"):
        ServingSettings(2, 100, page - 1, 16).paging(target, NGram())


def test_parts_are_asked(target: Target) -> None:
    class Half(NGram):
        def kv_bytes(self, capacity: int, max_length: int, device: torch.device) -> int:
            return capacity * max_length

    assert own_kv_bytes(Hybrid([Half(), NGram(), Half()]), 2, 100, CPU) == 400
