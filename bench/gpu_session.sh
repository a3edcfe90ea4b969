#!/usr/bin/env bash
# All checks and measurements that need a GPU, in one command: bench/gpu_session.sh [--rehearse] [OUT]
#
# Stage A, "it runs" (3 minutes at most): the runner (bench/gpu_runner), which needs no Python, alone and under memcheck
# and racecheck; then bench/first_minute.py, and on Hopper the backward that is not chosen yet. Ends in a table: RIGHT or
# WRONG for each group of kernels.
# Stage B, "measure and tune" (6 minutes at most): bench/measure.py, one process; then ncu on three kernels.
# The rest, if time is left: a first call, the model, torch.compile, Table 5, the GPU tests, every other row.
#
# OUT (default bench/results) gets table.txt, <gpu>.json, <gpu>-tiles.json, report.md with its pictures, and session.log.
# Everything is written as it goes. A second call with the same OUT does only what is missing or has changed; what it
# remembers is in <OUT>.done. SECONDS_IN_ALL (default 570) limits the whole call, and every step has its own limit.
#
# What can be built ahead is carried: a GPU that is paid by the minute should not wait for a compiler. Where the code is:
#     python bench/gpu_build.py build/gpu --python <a Python of the GPU's machine's version, with its headers>
# and there: CARRIED=build/gpu bash bench/gpu_session.sh. CARRIED has the runner and the extension; if they do not run
# there, they are built there. WHEELS names a folder of wheels (open_clip_torch, POT, geomloss, peft, pytest-benchmark,
# flash-sinkhorn, inf-cl, memeff, siglip-kernel), which go into a folder of their own; a peer that is not there is left
# out. Triton's kernels cannot be carried: bench/warm.py compiles them on all cores while the runner runs. BENCH_COMMIT
# names the commit if the tree is a copy without its repository.
#
# --rehearse runs everything at toy sizes without a GPU, in the present environment.
set -uo pipefail
cd "$(dirname "$0")/.."
rehearse=
if [ "${1:-}" = --rehearse ]; then
    rehearse=1
    shift
fi
out=$(mkdir -p "${1:-bench/results}" && cd "${1:-bench/results}" && pwd)
log="$out/session.log" table="$out/table.txt" done_folder="$out.done" # beside OUT: only what is to be kept is in it
mkdir -p "$done_folder"
: >"$log"
report_seconds=25
deadline=$((${SECONDS_IN_ALL:-570} - report_seconds))
status=0
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 # what is printed is in the log even if a step is killed
sources=$(find bench csrc kernels hystar_fast setup.py -name '*.py' -o -name '*.h' -o -name '*.cpp' -o -name '*.cu*' | sort |
    xargs cat | sha1sum | cut -c1-12)

step() { # limit in seconds, name, command...
    local limit=$1 name=$2 started=$SECONDS left=$((deadline - SECONDS))
    shift 2
    last="$done_folder/last.txt"
    rm -f "$last"
    if [ "$left" -lt 10 ]; then
        echo "== $name: skipped, no time left" | tee -a "$log"
        status=1
        return 1
    fi
    echo "== $name" >>"$log"
    timeout --kill-after=10 $((limit < left ? limit : left)) "$@" 2>&1 | tee "$last" >>"$log"
    local code=${PIPESTATUS[0]}
    echo "== $name: exit $code after $((SECONDS - started)) s" | tee -a "$log"
    if [ "$code" -ne 0 ]; then
        status=1
        tail -n 25 "$last"
    fi
    return "$code"
}

# A step of stage A. Its verdicts are its lines that begin with RIGHT or WRONG, or one by its exit code. A step whose
# sources have not changed since it was right is not repeated.
verdict() { # limit in seconds, name, words "lines" or "code", command...
    local limit=$1 name=$2 by=$3 code found
    local kept="$done_folder/${name// /-}.$sources"
    shift 3
    if [ -s "$kept" ]; then
        echo "== $name: right before" | tee -a "$log"
        cat "$kept" >>"$table"
        return
    fi
    step "$limit" "$name" "$@"
    code=$?
    found=
    [ "$by" = lines ] && [ -e "$last" ] && found=$(grep -E '^(RIGHT|WRONG) ' "$last")
    if [ -z "$found" ]; then
        found="RIGHT $name"
        [ "$code" -ne 0 ] && found="WRONG $name: ended with $code, see session.log"
        [ ! -e "$last" ] && found="WRONG $name: not run, no time left"
    fi
    echo "$found" | tee -a "$table"
    if [ "$code" -eq 0 ]; then echo "$found" >"$kept"; fi
}

measure() { # limit in seconds, stems, arguments...
    local limit=$(($1 * slack)) stems=$2 files=() stem
    shift 2
    for stem in $stems; do files+=("bench/bench_$stem.py"); done
    step "$limit" "bench $stems $*" "$python" -m pytest -q -p no:cacheprovider "${files[@]}" \
        "${sizes[@]}" --results "$results" "$@"
}

slack=1 toy=() sizes=(--resume) compiling="style_nce sinkhorn"
export PYTHONPATH="$PWD:${PYTHONPATH:-}"
if [ -n "$rehearse" ]; then
    slack=10 # the limits are those of a GPU; a busy CPU takes longer
    toy=(--toy)
    name=rehearsal
    export BENCH_PLAN=cuda
    sizes=(--quick --resume)
    runner=${CARRIED:+$CARRIED/runner}
    compiling=style_nce
else
    device="import torch; assert torch.cuda.is_available(), 'no CUDA device'; p = torch.cuda.get_device_properties(0)"
    step 60 "device" "$python" -c "$device; print(p.name, f'{p.major}.{p.minor}', torch.__version__)" || exit 1
    if [ ! -e .git ] && [ -z "${BENCH_COMMIT:-}" ]; then
        echo "== BENCH_COMMIT is not set and there is no repository: the rows will have no commit" | tee -a "$log"
    fi
    if [ -n "${WHEELS:-}" ]; then
        step 60 "wheels" "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade \
            --target build/site "$WHEELS"/*.whl
        PYTHONPATH="$PWD/build/site:$PYTHONPATH"
    fi
    built=${CARRIED:-build/gpu}
    suffix=$("$python" -c "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))")
    "$built/runner" unknown 2>/dev/null
    # it does not load here, is for another Python, or is of other sources
    if [ $? -ne 2 ] || [ ! -e "$built/_C$suffix" ] || ! "$python" bench/gpu_build.py "$built" --check; then
        built=build/gpu
        architecture=$("$python" -c "$device; print({9: '90a'}.get(p.major, f'{p.major}{p.minor}'))")
        step 200 "build" "$python" bench/gpu_build.py "$built" --architecture "$architecture"
    fi
    runner="$built/runner"
    # without an installation: the extension in its place, and the folder of kernels where an installation maps it
    cp "$built/_C$suffix" hystar_fast/ || status=1 # svd_linear is in Triton: it can be measured without
    "$python" -c "import hystar_fast.kernels" 2>/dev/null || ln -sfn ../kernels hystar_fast/kernels
    name=$("$python" -c "import sys; sys.path.insert(0, 'bench'); import store; print(store.default_path(False).stem)")
fi
results="$out/$name.json"

# Stage A: it runs
began=$SECONDS
: >"$table"
warming=
if [ -n "$rehearse" ]; then
    step 300 "warm" "$python" bench/warm.py --processes 1 --most 1
else
    timeout 100 "$python" bench/warm.py >"$done_folder/warm.txt" 2>&1 &
    warming=$!
fi
if [ -n "$runner" ]; then
    verdict $((60 * slack)) "runner" lines "$runner" all
    for tool in memcheck racecheck; do
        if command -v compute-sanitizer >/dev/null; then
            verdict $((25 * slack)) "$tool" code compute-sanitizer --tool "$tool" --error-exitcode 9 "$runner" toy
        else
            echo "WRONG $tool: no compute-sanitizer" | tee -a "$table"
        fi
    done
fi
[ -n "$warming" ] && wait "$warming"
[ -e "$done_folder/warm.txt" ] && cat "$done_folder/warm.txt" >>"$log"
if [ -n "$rehearse" ]; then
    export TRITON_INTERPRET=1
fi
verdict $((100 * slack)) "first minute" lines "$python" bench/first_minute.py "${toy[@]}"
specialised=()
if grep -q '^NVIDIA.* 9\.0 ' "$log"; then # for Hopper; measured only if it is right
    verdict 40 "specialised backward" lines "$python" bench/first_minute.py --specialised
    grep -q '^RIGHT specialised' "$table" && specialised=(--specialised)
fi
echo "== stage A: $((SECONDS - began)) s" | tee -a "$log"
cat "$table"

# Stage B: measure and tune
began=$SECONDS
step 30 "info" "$python" -c "import hystar_fast as hf; print(*hf.info(), sep='\n')"
step $((290 * slack)) "measure" "$python" bench/measure.py "$results" "${toy[@]}" "${specialised[@]}"
unset TRITON_INTERPRET
if command -v ncu >/dev/null; then
    sections=(--clock-control none --section SpeedOfLight --section WarpStateStats --section LaunchStats)
    [ -n "$runner" ] && step 25 "ncu sinkhorn" ncu "${sections[@]}" -k regex:tile_kernel -c 1 "$runner" production "4096 of 48x48"
    [ -z "$rehearse" ] && step 45 "ncu svd_linear" ncu "${sections[@]}" -k regex:svd_linear_gemm -s 2 -c 2 "$python" bench/measure.py --once
fi
echo "== stage B: $((SECONDS - began)) s" | tee -a "$log"

# The rest
measure 40 svd_linear -k first_call
measure 70 model
measure 90 "$compiling" -k compile
mapfile -t tests < <(grep -rl --include='test_*.py' '^@requires_cuda' tests)
if [ -n "$rehearse" ]; then
    step 100 "collect tests" "$python" -m pytest -q --collect-only -m gpu "${tests[@]}"
    step 120 "sanitizer cases" "$python" bench/sanitize.py cpu
else
    step 120 "tests" "$python" -m pytest -q -n 6 -m gpu --continue-on-collection-errors "${tests[@]}"
fi
table5=("$python" -m hystar_fast.cli.main experiments reproduce table5 --output "$out")
if [ -n "$rehearse" ]; then
    step 300 "table 5" "${table5[@]}" --set model.pretrained=random
else
    step 120 "table 5" "${table5[@]}" --set model.backbone=open_clip:ViT-L-14 --set run.device=cuda
fi
measure 200 "svd_linear ceiling sinkhorn style_nce perturbed_topk" -k "not first_call${rehearse:+ and not compile}" # every other row
measure 60 experts
[ -z "$rehearse" ] && command -v compute-sanitizer >/dev/null &&
    step 120 "memcheck of svd_linear" compute-sanitizer --tool memcheck --error-exitcode 9 "$python" bench/sanitize.py
deadline=$((deadline + report_seconds))
step $((deadline - SECONDS)) "report" "$python" bench/report.py --out "$out" "$results"
rm -f "$done_folder/last.txt"
cat "$table"
grep -q '^WRONG' "$table" && status=1
exit $status
