#!/usr/bin/env bash
# All measurements and tests that need a GPU, in one command: bench/gpu_session.sh [--rehearse] [OUT]
#
# Installs the project in place (nothing is downloaded), measures the machine's ceilings and, after its parity check,
# every benchmark, runs the GPU tests, and runs small cases under compute-sanitizer. The cheapest and most important
# steps come first. Every row is written as soon as it is measured, so an interrupted run keeps its rows, and the next
# run measures only rows that are missing or whose kernels have changed. OUT (default bench/results) gets <gpu>.json,
# its pictures, the tables in report.md, and session.log.
#
# SECONDS_IN_ALL (default 540) limits the whole run; a step gets at most the time that is left. WHEELS names a folder of
# wheels to install first, without their dependencies; peer libraries that are not installed are skipped. BENCH_COMMIT
# names the commit if the tree is a copy without its repository.
# --rehearse runs the cases of a GPU at toy sizes without one, in the present environment.
set -uo pipefail
cd "$(dirname "$0")/.."
rehearse=
if [ "${1:-}" = --rehearse ]; then
    rehearse=1
    shift
fi
out=$(mkdir -p "${1:-bench/results}" && cd "${1:-bench/results}" && pwd)
log="$out/session.log"
: >"$log"
report_seconds=30
deadline=$((${SECONDS_IN_ALL:-540} - report_seconds))
status=0
python=${PYTHON:-python3}

step() { # limit in seconds, name, command...
    local limit=$1 name=$2 started=$SECONDS left=$((deadline - SECONDS))
    shift 2
    if [ "$left" -lt 10 ]; then
        echo "== $name: skipped, no time left" | tee -a "$log"
        status=1
        return 1
    fi
    echo "== $name" >>"$log"
    timeout --kill-after=10 $((limit < left ? limit : left)) "$@" >>"$log" 2>&1
    local code=$?
    echo "== $name: exit $code after $((SECONDS - started)) s" | tee -a "$log"
    if [ $code -ne 0 ]; then
        status=1
        tail -n 25 "$log"
    fi
    return $code
}

slack=1
if [ -n "$rehearse" ]; then
    slack=10 # the limits are those of a GPU; a busy CPU takes longer
    name=rehearsal
    export BENCH_PLAN=cuda
    sizes=(--quick --resume --profile-ours)
    compiling=(style_nce)
else
    device="import torch; assert torch.cuda.is_available(), 'no CUDA device'; p = torch.cuda.get_device_properties(0)"
    step 60 "device" "$python" -c "$device; print(p.name, f'{p.major}.{p.minor}', torch.__version__)" || exit 1
    if [ ! -e .git ] && [ -z "${BENCH_COMMIT:-}" ]; then
        echo "== BENCH_COMMIT is not set and there is no repository: the rows will have no commit" | tee -a "$log"
    fi
    name=$("$python" -c "import sys; sys.path.insert(0, 'bench'); import store; print(store.default_path(False).stem)")
    if [ -n "${WHEELS:-}" ]; then
        step 60 "wheels" "$python" -m pip install -q --no-index --no-deps "$WHEELS"/*.whl
    fi
    # only the code for this GPU: all architectures would take minutes
    HYSTAR_FAST_CUDA_ARCHITECTURES=$("$python" -c "$device; print({9: '90a'}.get(p.major, f'{p.major}{p.minor}'))")
    export HYSTAR_FAST_CUDA_ARCHITECTURES
    install=("$python" -m pip install -q --no-index --no-deps --no-build-isolation -e .)
    # svd_linear is in Triton: it can be measured without the compiled extension
    step 240 "build" "${install[@]}" || step 60 "build without nvcc" env HYSTAR_FAST_CUDA_ARCHITECTURES=none "${install[@]}" || exit 1
    sizes=(--profile-ours --resume)
    compiling=(style_nce sinkhorn svd_linear)
fi
results="$out/$name.json"

step 30 "info" "$python" -c "import hystar_fast as hf; print(*hf.info(), sep='\n')"
measure() { # limit in seconds, stem, arguments...
    local limit=$(($1 * slack)) stem=$2
    shift 2
    step "$limit" "bench $stem $*" "$python" -m pytest -q -p no:cacheprovider "bench/bench_$stem.py" \
        "${sizes[@]}" --results "$results" "$@"
}
measure 40 ceiling
measure 45 sinkhorn -k "not compile"
measure 25 style_nce -k "not compile"
measure 70 svd_linear -k "3072 and not compile or first_call" # the cases with goals come first
measure 70 model
if [ -n "$rehearse" ]; then
    step 60 "collect tests" "$python" -m pytest -q --collect-only -m gpu tests
    step 60 "sanitizer cases" "$python" bench/sanitize.py cpu
else
    step 120 "tests" "$python" -m pytest -q -n 6 -m gpu --continue-on-collection-errors tests
    if command -v compute-sanitizer >/dev/null; then
        for tool in memcheck racecheck; do
            step 60 "compute-sanitizer $tool" compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" bench/sanitize.py
        done
    else
        echo "== compute-sanitizer: not found" | tee -a "$log"
        status=1
    fi
fi
for stem in "${compiling[@]}"; do
    measure 45 "$stem" -k compile
done
measure 300 svd_linear -k "not compile and not first_call" # the rest of its cases
table5=("$python" -m hystar_fast.cli.main experiments reproduce table5 --output "$out")
if [ -n "$rehearse" ]; then
    step 120 "table 5" "${table5[@]}" --set model.pretrained=random
else
    step 120 "table 5" "${table5[@]}" --set model.backbone=open_clip:ViT-L-14 --set run.device=cuda
fi
deadline=$((deadline + report_seconds))
step $((deadline - SECONDS)) "report" "$python" bench/report.py --out "$out" "$results"
exit $status
