#!/usr/bin/env bash
# Everything a GPU can prove, in one command: bench/gpu_session.sh [--rehearse] [OUT]
#
# Installs the project where it stands (nothing is downloaded), runs the GPU tests, measures the machine's ceilings and
# every benchmark behind its parity gate, and looks for bad memory accesses and races on small cases. The cheapest and
# most important come first and every row is written as soon as it is measured, so a run that is cut off keeps what it
# had: OUT (default bench/results) gets <gpu>.json, its pictures, the tables in report.md, and session.log.
#
# SECONDS_IN_ALL (default 540) bounds the whole; a step gets at most what is left of it. Peers that are not installed are
# left out. BENCH_COMMIT names the commit where the tree is a copy without its repository.
# --rehearse does all of it without a GPU, at toy sizes, in the environment that is there.
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
deadline=${SECONDS_IN_ALL:-540}
status=0
python=${PYTHON:-python3}

step() { # most seconds, name, command...
    local most=$1 name=$2 started=$SECONDS left=$((deadline - SECONDS))
    shift 2
    if [ "$left" -lt 10 ]; then
        echo "== $name: left out, the time is up" | tee -a "$log"
        status=1
        return 1
    fi
    echo "== $name" >>"$log"
    timeout --kill-after=10 $((most < left ? most : left)) "$@" >>"$log" 2>&1
    local code=$?
    echo "== $name: exit $code after $((SECONDS - started)) s" | tee -a "$log"
    if [ $code -ne 0 ]; then
        status=1
        tail -n 25 "$log"
    fi
    return $code
}

if [ -n "$rehearse" ]; then
    name=rehearsal
    sizes=(--quick)
    step 60 "tests are there" "$python" -m pytest -q --collect-only -m gpu tests
    step 60 "sanitizer cases" "$python" bench/sanitize.py cpu
else
    device="import torch; assert torch.cuda.is_available(), 'no CUDA device'; p = torch.cuda.get_device_properties(0)"
    step 60 "device" "$python" -c "$device; print(p.name, f'{p.major}.{p.minor}', torch.__version__)" || exit 1
    name=$("$python" -c "import sys; sys.path.insert(0, 'bench'); import store; print(store.default_path(False).stem)")
    # the code for this GPU alone, as all the others would take minutes
    HYSTAR_FAST_CUDA_ARCHITECTURES=$("$python" -c "$device; print({9: '90a'}.get(p.major, f'{p.major}{p.minor}'))")
    export HYSTAR_FAST_CUDA_ARCHITECTURES
    step 240 "build" "$python" -m pip install -q --no-index --no-deps --no-build-isolation -e . || exit 1
    sizes=(--profile-ours)
    step 150 "tests" "$python" -m pytest -q -n 6 -m gpu tests
fi
results="$out/$name.json"
rm -f "$results"

step 30 "info" "$python" -c "import hystar_fast as hf; print(*hf.info(), sep='\n')"
measure() { # most seconds, stem, arguments...
    local most=$1 stem=$2
    shift 2
    step "$most" "bench $stem" "$python" -m pytest -q -p no:cacheprovider "bench/bench_$stem.py" \
        "${sizes[@]}" --results "$results" --append "$@"
}
measure 40 ceiling
measure 120 sinkhorn -k "not compile"
measure 150 svd_linear -k "not compile"
measure 60 style_nce -k "not compile"
sanitizer=$(command -v compute-sanitizer || true)
if [ -n "$rehearse" ]; then
    echo "== compute-sanitizer: needs a GPU" | tee -a "$log"
elif [ -n "$sanitizer" ]; then
    for tool in memcheck racecheck; do
        step 90 "compute-sanitizer $tool" "$sanitizer" --tool "$tool" --error-exitcode 9 "$python" bench/sanitize.py
    done
else
    echo "== compute-sanitizer: not found" | tee -a "$log"
fi
measure 200 model
if [ -z "$rehearse" ]; then
    for stem in sinkhorn style_nce svd_linear; do
        measure 120 "$stem" -k compile
    done
fi
step 60 "report" "$python" bench/report.py --out "$out" "$results"
exit $status
