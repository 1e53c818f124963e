"""A stand-in for vLLM: a Python whose `vllm` package says what a table tells it to say."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

# As much of vLLM's interface as is used. A pass drafts 3 tokens, of which it accepts 2, or misses; the last one is cut.
PACKAGE = {
    "__init__.py": """
import json, os
from pathlib import Path
from types import SimpleNamespace as Thing

__version__ = "0.0-stand-in"
TABLE = json.loads(Path(__file__).with_name("table.json").read_text())
print("vLLM is chatty on stdout")


class SamplingParams:
    def __init__(self, **settings):
        self.settings = settings

    def clone(self):
        return SamplingParams(**self.settings)


class LLM:
    def __init__(self, **settings):
        if settings.get("fail"):
            raise RuntimeError("no such\\n  setting")
        Path(__file__).with_name(f"opened-{os.getpid()}.json").write_text(json.dumps(settings))
        self.drafts = "speculative_config" in settings
        self.told = "per_request_spec_decode_metrics" in settings
        self.llm_engine, self.running = self, {}

    def add_request(self, name, prompt, params):
        if params.settings.get("seed") == 666:
            os._exit(1)
        text = next(t for ids, t in TABLE if ids == prompt["prompt_token_ids"])[: params.settings["max_tokens"]]
        self.running[name] = [text, 0, []]

    def has_unfinished_requests(self):
        return bool(self.running)

    def step(self):
        outputs = []
        for name, (text, at, accepted) in list(self.running.items()):
            size = 3 if self.drafts and at and at not in {MISSES} else 1
            if size == 3:
                accepted.append(2)
            new, self.running[name][1] = text[at : at + size], at + size
            finished = at + size >= len(text)
            found = Thing(per_step_drafted=[3] * len(accepted), per_step_accepted=accepted) if self.told else None
            part = Thing(token_ids=new, spec_decode_metrics=found if finished else None)
            outputs.append(Thing(request_id=name, outputs=[part], finished=finished))
            if finished:
                del self.running[name]
        return outputs
""",
    "sampling_params.py": "class RequestOutputKind:\n    DELTA = 1\n",
    "engine/__init__.py": "",
    "engine/arg_utils.py": "class EngineArgs:\n    __dataclass_fields__ = {FIELDS}\n",
}


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[..., Path]:
    """Makes the Python; its table is pairs of a prompt's and a text's token ids. No draft is found at the places
    `misses`."""

    def make(
        table: Sequence[tuple[Sequence[int], Sequence[int]]], told: bool = True, misses: Sequence[int] = ()
    ) -> Path:
        package = tmp_path / "packages" / "vllm"
        for name, content in PACKAGE.items():
            (package / name).parent.mkdir(parents=True, exist_ok=True)
            fields = "{'per_request_spec_decode_metrics': 0}" if told else "{}"
            (package / name).write_text(content.replace("{FIELDS}", fields).replace("{MISSES}", repr(misses)))
        (package / "table.json").write_text(json.dumps([[list(ids), list(text)] for ids, text in table]))
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nPYTHONPATH={package.parent} exec {sys.executable} "$@"\n')
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        return python

    return make


def opened(python: Path) -> list[dict[str, object]]:
    """What the stand-in's engines were given, by process."""
    files = sorted((python.parent / "packages" / "vllm").glob("opened-*.json"), key=os.path.getmtime)
    return [json.loads(file.read_text()) for file in files]
