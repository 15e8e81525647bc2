#!/usr/bin/env bash
# The CUDA kernels on a machine with a GPU, in less than eight minutes: the build for it, the tests
# on the device, compute-sanitizer. Reports go to the folder given, default bench/results.
set -euo pipefail
cd "$(dirname "$0")/.."
results=${1:-bench/results}
mkdir -p "$results"
step() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }

step "build for this GPU"
architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)
PYCC_CUDA=ON PYCC_OPS=compiled pip install -q -c constraints.txt '.[test]' \
    --config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES="$architecture"
python -c "import pycc.ops, torch; print(pycc.ops.info(), torch.cuda.get_device_name())"

step "tests on the device"
timeout 180 pytest -q -m cuda tests | tee "$results/cuda-tests.txt" | tail -3

step "compute-sanitizer: memory, shared memory, barriers"
if command -v compute-sanitizer >/dev/null; then
    failed=()
    for tool in memcheck racecheck synccheck; do
        timeout 60 compute-sanitizer --tool "$tool" --error-exitcode 9 \
            pytest -q -x -m cuda tests/ops -k 'real_size or definition' \
            >"$results/cuda-$tool.txt" 2>&1 || failed+=("$tool ($?)")
        tail -2 "$results/cuda-$tool.txt"
    done
    if ((${#failed[@]})); then
        echo "failed, or not ended after 60 s (124): ${failed[*]}" >&2
        exit 1
    fi
else
    echo "compute-sanitizer is not on the PATH: skipped"
fi

step "done"
