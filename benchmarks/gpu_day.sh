#!/usr/bin/env bash
# Everything worth running when there is a GPU, the most valuable first; needs torch, triton, transformers, pytest,
# hypothesis, rich, matplotlib.
#   bash benchmarks/gpu_day.sh [FOLDER]      default: benchmarks/results/<GPU's name>
#   KERNEL_MINUTES=40 bash ...               longer on tree attention; 12 is the default
# Each part writes its log or its JSON with provenance into FOLDER; a part that fails does not stop the next, except
# that nothing is timed after kernels that failed their tests.
set -uo pipefail
cd "$(dirname "$0")/.."
name=$(python -c "import torch; print(torch.cuda.get_device_name().lower().replace(' ', '-'))") || {
    echo "gpu_day.sh: no CUDA device" >&2
    exit 1
}
python -c "import hypothesis" 2>/dev/null || {
    echo "gpu_day.sh: hypothesis is missing, so no test would run: pip install hypothesis, or offline put its wheel on PYTHONPATH" >&2
    exit 1
}
out=${1:-benchmarks/results/$name}
mkdir -p "$out"
part() { # TITLE LOG COMMAND...
    printf '\n######## %s\n' "$1"
    "${@:3}" 2>&1 | tee "$out/$2" || {
        echo "gpu_day.sh: that part failed"
        return 1
    }
}
tests() {
    python -m pytest -q -p no:cacheprovider "$@"
}
bench() {
    python -m specdec.experiments.cli bench "$@"
}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.limit --format=csv >"$out/gpu.csv"
right=true
part "kernels, compiled" tests_kernels.log tests -m "not slow" tests/kernels || right=false
part "what needs a device" tests_gpu.log tests -m gpu tests
if command -v compute-sanitizer >/dev/null; then
    # without torch's own pools, every tensor is an allocation whose ends are watched
    part "memory of some kernels" memcheck.log env PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 300 \
        compute-sanitizer --tool memcheck --error-exitcode 9 python -m pytest -q -p no:cacheprovider \
        tests/kernels/test_tree_attention_triton.py tests/kernels/test_small_ops.py \
        -k "agrees_with_the_maths or page_sizes or kv_commit or kv_write"
fi
$right || {
    echo "gpu_day.sh: kernels failed their tests, see $out/tests_kernels.log; nothing is timed" >&2
    exit 1
}
part "tree attention against its rivals" kernels.log bench kernels minutes="${KERNEL_MINUTES:-12}" output="$out/kernels.json"
part "small operations" ops.log bench ops minutes=2 output="$out/ops.json"
part "steps of an 8B shape" step.log bench step output="$out/step.json"
part "what the machine gives" machine.log bench machine output="$out/machine.json"
part "the loop" loop.log python benchmarks/loop.py --output "$out/loop.json"
part "the loop, captured" loop_captured.log python benchmarks/loop.py --compile --output "$out/loop_captured.json"
