"""Results of the proofs say of which code they are: benchmarks/lossless_page.py reads it from --junitxml's file."""

from __future__ import annotations

import pytest

from specdec.experiments import provenance


@pytest.fixture(scope="session")
def _code() -> str:
    """The commit; "changed" behind it where files differ from it, "unknown" where there is no repository."""
    state = provenance.git_state()
    return "unknown" if state is None else str(state["commit"]) + " changed" * state["dirty"]


@pytest.fixture(autouse=True)
def _code_in_the_results(_code: str, request: pytest.FixtureRequest) -> None:
    request.node.user_properties.append(("commit", _code))
