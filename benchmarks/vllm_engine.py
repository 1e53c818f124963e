"""vLLM's half of vllm_compare.py, run by the Python that has vLLM: `python vllm_engine.py JOB.json`.

Decodes the job's prompts greedily with its speculative_config; the last line of stdout is the texts and vLLM's counts.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import vllm

COUNTS = ("num_drafts", "num_accepted_tokens")


def main() -> None:
    """Read the job, decode, print."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    engine = vllm.LLM(
        model=job["target"],
        dtype=job["dtype"],
        max_model_len=job["max_model_len"],
        max_num_seqs=8,
        enforce_eager=True,
        disable_log_stats=False,
        speculative_config=job["speculative_config"],
    )
    sampling = vllm.SamplingParams(temperature=0.0, max_tokens=job["tokens"], ignore_eos=True)
    outputs = engine.generate([{"prompt_token_ids": ids} for ids in job["prompts"]], sampling)
    values = {metric.name: vars(metric) for metric in engine.get_metrics()}
    counts = {name: int(values[f"vllm:spec_decode_{name}"]["value"]) for name in COUNTS}
    by_depth = values["vllm:spec_decode_num_accepted_tokens_per_pos"]["values"]
    texts = [list(output.outputs[0].token_ids) for output in outputs]
    print(json.dumps({"version": vllm.__version__, "texts": texts, "by_depth": by_depth, **counts}))


if __name__ == "__main__":
    main()
