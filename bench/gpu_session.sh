#!/usr/bin/env bash
# Everything a GPU can prove, in one command: bench/gpu_session.sh [OUT]
# Builds the extension here, runs the GPU tests, checks memory and races on small cases, then measures.
# Results are written as they come to OUT (default bench/results), so a run that is cut off keeps what it had.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-bench/results}
mkdir -p "$out"
log="$out/gpu_session.log"
: >"$log"
status=0

step() { # name, command...
    local name=$1 started=$SECONDS
    shift
    echo "== $name" | tee -a "$log"
    "$@" >>"$log" 2>&1
    local code=$?
    echo "== $name: exit $code after $((SECONDS - started)) s" | tee -a "$log"
    [ $code -eq 0 ] || { status=1; tail -n 25 "$log"; }
    return $code
}

export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
step "device" python3 -c "import torch; assert torch.cuda.is_available(), 'no CUDA device'; print(torch.cuda.get_device_name())" || exit 1
step "build" python3 setup.py -q build_ext --inplace || exit 1
step "info" python3 -c "import hystar_fast as hf; [print(row) for row in hf.info()]"
step "tests" python3 -m pytest -q -k "cuda or gpu" tests
sanitizer=$(command -v compute-sanitizer || true)
if [ -n "$sanitizer" ]; then
    for tool in memcheck racecheck; do
        step "compute-sanitizer $tool" "$sanitizer" --tool "$tool" --error-exitcode 9 python3 bench/sanitize.py
    done
else
    echo "== compute-sanitizer: not found" | tee -a "$log"
fi
for op in svd_linear sinkhorn style_nce; do
    step "bench $op" python3 -m pytest -q "bench/bench_$op.py" --results "$out/gpu-$op.json"
done
for file in "$out"/gpu-*.json; do
    [ -f "$file" ] && python3 bench/report.py --print "$file"
done
exit $status
