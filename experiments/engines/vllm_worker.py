"""vLLM's half of `vllm_engine.py`, run by the Python that has vLLM; it imports nothing of specdec.

A line that it reads is an object: `{"open": settings of vllm.LLM}` first, then any number of `{"serve": {"prompts",
"max_new_tokens" (of all, or a list), "sampling", "eos"}}`. It answers `{"version"}`, then `{"answers": [{"passes",
"times", "drafts"}], "forwards"}`, as `base.Answer` says.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # a step of the engine is a call in this process
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

TOLD = "per_request_spec_decode_metrics"  # an argument of newer versions: what was drafted and accepted, by pass


def main() -> None:
    """Answer until stdin ends. What vLLM prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "open" in request:
                import vllm

                engine = open_engine(request["open"])
                answer: dict[str, Any] = {"version": vllm.__version__}
            else:
                answer = serve(engine, **request["serve"])
        except Exception as error:
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
        print(json.dumps(answer), file=answers, flush=True)


def open_engine(settings: dict[str, Any]) -> Any:
    """A vllm.LLM, which tells of every request what was drafted where it can."""
    import vllm
    from vllm.engine.arg_utils import EngineArgs

    if "speculative_config" in settings and TOLD in EngineArgs.__dataclass_fields__:
        settings = {TOLD: "detailed", **settings}
    return vllm.LLM(**settings)


def serve(
    engine: Any, prompts: list[list[int]], max_new_tokens: int | list[int], sampling: dict[str, Any], eos: list[int]
) -> dict[str, Any]:
    """Serve requests together, step by step, as `LLM.generate` does, with the time taken at every step."""
    import vllm
    from vllm.sampling_params import RequestOutputKind

    answers: list[dict[str, Any]] = [{"passes": [], "times": [], "drafts": None} for _ in prompts]
    core, forwards = engine.llm_engine, 0
    began = time.perf_counter()
    lengths = max_new_tokens if isinstance(max_new_tokens, list) else [max_new_tokens] * len(prompts)
    for number, (ids, length) in enumerate(zip(prompts, lengths)):
        params = vllm.SamplingParams(
            max_tokens=length, stop_token_ids=eos, ignore_eos=True, detokenize=False,
            output_kind=RequestOutputKind.DELTA, **sampling,
        )  # fmt: skip
        core.add_request(str(number), {"prompt_token_ids": ids}, params)
    while core.has_unfinished_requests():
        outputs = core.step()
        now, further = time.perf_counter() - began, False
        for output in outputs:
            answer, (part,) = answers[int(output.request_id)], output.outputs
            if part.token_ids:
                further = further or bool(answer["passes"])
                answer["passes"].append(list(part.token_ids))
                answer["times"].append(now)
            if output.finished:
                answer["drafts"] = drafts(part)
        forwards += further
    return {"answers": answers, "forwards": forwards}


def drafts(part: Any) -> list[tuple[int, int]] | None:
    """Drafted and accepted tokens of every pass that had a draft; none without a drafter; None if vLLM did not say."""
    found = getattr(part, "spec_decode_metrics", None)
    return None if found is None else list(zip(found.per_step_drafted, found.per_step_accepted))


if __name__ == "__main__":
    main()
