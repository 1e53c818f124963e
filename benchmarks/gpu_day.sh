#!/usr/bin/env bash
# Everything worth running when there is a GPU, the most valuable first; needs torch, triton, transformers, pytest, rich,
# matplotlib.
#   bash benchmarks/gpu_day.sh [FOLDER]      default: benchmarks/results/<GPU's name>
#   KERNEL_MINUTES=40 bash ...               longer on tree attention; 12 is the default
# Each part writes its log or its JSON with provenance into FOLDER; a part that fails does not stop the next.
set -uo pipefail
cd "$(dirname "$0")/.."
name=$(python -c "import torch; print(torch.cuda.get_device_name().lower().replace(' ', '-'))") || {
    echo "gpu_day.sh: no CUDA device" >&2
    exit 1
}
out=${1:-benchmarks/results/$name}
mkdir -p "$out"
part() {
    printf '\n######## %s\n' "$1"
    shift
    "$@" || echo "gpu_day.sh: that part failed (exit $?)"
}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.limit --format=csv >"$out/gpu.csv"
part "what needs a device" python -m pytest -q -p no:cacheprovider -o addopts="" -m gpu tests 2>&1 | tee "$out/tests_gpu.log"
part "kernels, compiled" python -m pytest -q -p no:cacheprovider -o addopts="" -m "not slow" tests/kernels 2>&1 | tee "$out/tests_kernels.log"
part "tree attention against its rivals" python -m specdec.experiments.cli bench kernels minutes="${KERNEL_MINUTES:-12}" \
    output="$out/kernels.json" 2>&1 | tee "$out/kernels.log"
part "small operations" python -m specdec.experiments.cli bench ops minutes=2 output="$out/ops.json" 2>&1 | tee "$out/ops.log"
part "whole steps of an 8B shape" python -m specdec.experiments.cli bench step output="$out/step.json" 2>&1 | tee "$out/step.log"
part "the loop" python benchmarks/loop.py --output "$out/loop.json" 2>&1 | tee "$out/loop.log"
part "the loop, captured" python benchmarks/loop.py --compile --output "$out/loop_captured.json" 2>&1 | tee "$out/loop_captured.log"
