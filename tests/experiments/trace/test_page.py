"""The page as a file: everything is on it, nothing is fetched, and no text of a run becomes markup."""

from __future__ import annotations

import base64
import hashlib
import json
from html.parser import HTMLParser
from typing import Any

import pytest

from specdec.experiments.trace.page import data, render
from specdec.experiments.trace.record import Trace
from specdec.metrics import STEP_PHASES

from .made import EVIL, made_trace, real_trace


class Page(HTMLParser):
    """Tags with their attributes, and what stands in each script, style and step."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.within: dict[str, list[str]] = {"script": [], "style": [], "step": []}
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        kind = "step" if ("class", "step") in attrs else tag
        if tag not in ("meta", "input", "br", "rect"):
            self._open.append(kind)
        if kind in self.within:
            self.within[kind].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag != "rect":
            assert self._open.pop() in (tag, "step")

    def handle_data(self, text: str) -> None:
        for kind in self.within.keys() & set(self._open):
            self.within[kind][-1] += text

    @property
    def data(self) -> list[dict[str, Any]]:
        """What the script reads."""
        found: list[dict[str, Any]] = json.loads(self.within["script"][0])
        return found


@pytest.fixture(scope="module")
def real() -> Trace:
    return real_trace()


def test_every_step_is_there(real: Trace) -> None:
    page = Page(render([real]))
    (shown,) = page.data
    assert len(shown["steps"]) == len(real.steps) > 3
    for drawn, step in zip(shown["steps"], real.steps, strict=True):
        assert drawn["words"] == [real.words[token] for token in (*step.tokens, step.own)]
        assert drawn["parents"] == [*step.parents, step.path[-1]]
        assert drawn["path"] == step.path
        assert drawn["target"][1:] == pytest.approx([*step.target[1:], step.own_target], abs=1e-3)
        assert drawn["draft"][1:-1] == pytest.approx(step.draft[1:], abs=1e-3)
        assert drawn["times"] == pytest.approx([step.seconds(phase) for phase in STEP_PHASES], abs=1e-7)
        assert drawn["rows"][step.path[-1]] == drawn["rows"][-1]  # the target's own token goes on in line
    assert page.within["step"] == [accepted + own for accepted, own in real.pieces]


def test_the_sentence_says_what_happened() -> None:
    trace = made_trace(2, 6, ["a", "b", "c"])
    first, second = (step["said"] for step in data(trace)["steps"])
    path = [trace.words[trace.steps[0].tokens[j]] for j in trace.steps[0].path[1:]]
    added = trace.words[trace.steps[0].own]
    said = f"{len(path)} of 5 drafted tokens accepted, “{''.join(path)}”; the target added “{added}”."
    assert first == f"Step 1 of 2: {said}"
    assert second.startswith("Step 2 of 2: none of 5 drafted tokens accepted; the target added")
    trace.steps[0].kept -= 1
    assert data(trace)["steps"][0]["said"].endswith("; the text ended there.")
    alone = made_trace(1, 1)
    assert "nothing was drafted" in data(alone)["steps"][0]["said"]


def test_nothing_is_fetched_and_only_its_own_script_runs(real: Trace) -> None:
    page = Page(render([real, made_trace(3, 5)]))
    names = [tag for tag, _ in page.tags]
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & set(names)
    for tag, attributes in page.tags:
        assert not {"src", "href", "srcset"} & attributes.keys(), tag
        assert not [name for name in attributes if name.startswith("on")], tag
    assert "url(" not in "".join(page.within["style"])
    assert "@import" not in "".join(page.within["style"])
    data, script = page.within["script"]
    assert names.count("script") == 2
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_texts_stay_texts() -> None:
    """Tokens, methods, prompts and names of parts that are markup."""
    trace = made_trace(8, 6, method="</script><u>'\"")
    text = render([trace, trace])
    page = Page(text)
    names = [tag for tag, _ in page.tags]
    assert names.count("b") == len(STEP_PHASES)  # where the times go
    assert not {"u", "em"} & set(names)
    assert text.count("<script") == text.count("</script") == 2
    (shown, _) = page.data
    assert shown["method"] == trace.method
    assert {word for step in shown["steps"] for word in step["words"]} <= set(EVIL)
    assert page.within["step"] == 2 * [a + b for a, b in trace.pieces]


def test_a_page_of_a_hundred_large_steps_is_small() -> None:
    assert len(render([made_trace(100, 64)]).encode()) < 3_000_000


@pytest.mark.parametrize("steps", [0, 1])
def test_short_texts_have_a_page(steps: int) -> None:
    page = Page(render([made_trace(steps, 1)]))
    assert len(page.data[0]["steps"]) == steps
