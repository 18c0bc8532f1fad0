#!/usr/bin/env bash
# Everything that is worth knowing on a machine with a GPU, smallest and most important first, in under 9 minutes:
# tests of the kernels, parity of ranks that share the GPU, then the benchmarks.
#
#     bench/gpu.sh [--first | --second] [--out FOLDER] [--only PART,PART…] [--small] [--dry-run]
#
# --first is for a GPU on which nothing has run yet, in 330 s: kernels against float64, steps with a profile, images and
# the kernels' tests. --second goes on in 300 s, once what failed has been mended: many images at once, kernels timed,
# fidelity, ranks that share the GPU.
#
# Needs python3 (PYTHON names another) with torch, triton, transformers and safetensors; neither zmq nor msgspec nor a
# package index. WHEELS names a folder of wheels (diffusers, FlashAttention …) to use besides, installed nowhere. What
# Triton compiles is kept in FOLDER/triton-cache.tar.gz, and TRITON_CACHE names such a file to begin with; traces of steps
# go to FOLDER/traces. KREA2_COMMIT names the commit that results are of, in place of git.
#
# BUDGET_S (540, or the preset's) seconds are shared out: each part has a slice of its own, which is told before the
# first begins, and is skipped, which is said, when fewer than LEAST_S (15) are left. A part that fails, or that leaves
# no number, does not stop the others, but the exit status is 1 then. Results are added to one JSON-lines file as they
# come, and all output to one log: FOLDER/results.jsonl and results.log (--out, or OUT), else
# bench/results/DATE-GPU.jsonl and .log. At the end comes a table: each part, what came of it, its key figures, their
# floors. --small runs every part at a tiny size on the CPU, --dry-run none of them: it prints the commands. No setting
# of the GPU is changed.
set -uo pipefail

usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; }

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
preset=everything
least=${LEAST_S:-15}
folder=${OUT:-}
only=""
small=""
dry=""
while (($#)); do
    case $1 in
    --out | --only)
        (($# > 1)) || { echo "error: $1 needs a value" >&2; exit 2; }
        if [[ $1 == --out ]]; then folder=$2; else only=$2; fi
        shift
        ;;
    --first | --second)
        [[ $preset == everything ]] || { echo "error: --first or --second, not both" >&2; exit 2; }
        preset=${1#--}
        ;;
    --small) small=1 ;;
    --dry-run) dry=1 ;;
    --help | -h) usage; exit 0 ;;
    *) echo "error: unknown option $1 (--help lists them)" >&2; exit 2 ;;
    esac
    shift
done
case $preset in
first) budget=${BUDGET_S:-330} ;;
second) budget=${BUDGET_S:-300} ;;
*) budget=${BUDGET_S:-540} ;;
esac
parts=$(sed -nE 's/^ *(part|skip) ([a-z0-9-]+) .*/\2/p' "$0" | awk '!seen[$0]++')
for name in ${only//,/ }; do
    grep -qxF -e "$name" <<<"$parts" || { echo "error: --only: $name is none of" $parts >&2; exit 2; }
done
[[ $budget,$least =~ ^[0-9]+,[0-9]+$ ]] || {
    echo "error: BUDGET_S and LEAST_S must be whole numbers of seconds, got $budget and $least" >&2
    exit 2
}

# ---- where results go

gpu=cpu
if [[ -z $small ]] && command -v nvidia-smi >/dev/null; then
    gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader --id=0 | tr '[:upper:] ' '[:lower:]-')
fi
if [[ -n $folder ]]; then
    base=$folder/results
else
    base=$root/bench/results/$(date -u +%Y-%m-%d)-$gpu
fi
mkdir -p "$(dirname "$base")" || exit 2
base=$(cd "$(dirname "$base")" && pwd)/$(basename "$base")
results=$base.jsonl
cache_file=$(dirname "$base")/triton-cache.tar.gz
traces=$(dirname "$base")/traces
[[ -z ${TRITON_CACHE:-} ]] || TRITON_CACHE=$(realpath -m "$TRITON_CACHE")
child=""
wheels=""
triton_cache=""
exec 3>&1 4>&2 > >(exec tee -a "$base.log") 2>&1
log_writer=$!

finish() {
    local status=$?
    trap '' INT TERM
    [[ -n $child ]] && kill "$child" 2>/dev/null && wait "$child" 2>/dev/null
    [[ -n $wheels ]] && rm -rf "$wheels"
    if [[ -n $triton_cache ]]; then
        if [[ -n $(ls -A "$triton_cache") ]] &&
            ! { tar -C "$triton_cache" -czf "$cache_file.new" . && mv "$cache_file.new" "$cache_file"; }; then
            echo "error: what Triton compiled cannot be kept in $cache_file"
            rm -f "$cache_file.new"
            ((status)) || status=1
        fi
        rm -rf "$triton_cache"
    fi
    exec >&3 2>&4
    wait "$log_writer" 2>/dev/null
    if (($? == 1)); then
        echo "error: the log, $base.log, is not whole" >&2
        ((status)) || status=1
    fi
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# ---- parts

names=()
slices=()
outcomes=()
begins=() # bytes of the results before each part, and after it
ends=()
planning=""
failed=0

# part NAME SLICE BENCHMARK WORDS…
part() {
    local name=$1 slice=$2 left began before status outcome
    chosen "$name" || return 0
    if [[ -n $planning ]]; then
        names+=("$name")
        slices+=("$slice")
        return 0
    fi
    left=$((budget - SECONDS))
    if ((left < least)); then
        skip "$name" "$left s of $budget s are left"
        return 0
    fi
    ((slice < left - least / 3)) || slice=$((left - least / 3))
    set -- "$python" -m bench.survive "bench.$3" "${@:4}" --seconds "$((slice > 20 ? slice - 10 : slice / 2))" \
        --json "$results"
    echo
    echo "== $name (at most $slice s): $*"
    before=$(results_size)
    if [[ -n $dry ]]; then
        note_outcome "$name" "not run" "$before"
        return 0
    fi
    gpu_state
    began=$SECONDS
    timeout -k 5 "$slice" "$@" </dev/null &
    child=$!
    wait "$child"
    status=$?
    child=""
    case $status in
    0) outcome="ok" ;;
    124 | 137) outcome="FAILED: not done after $slice s" ;;
    *) outcome="FAILED: exit status $status" ;;
    esac
    [[ $outcome != ok || $(results_size) != "$before" ]] || outcome="FAILED: no number"
    [[ $outcome == ok ]] || failed=1
    note_outcome "$name" "$outcome, $((SECONDS - began)) s" "$before"
    echo "== $name: ${outcomes[-1]}"
}

skip() {
    if [[ -z $planning ]] && chosen "$1"; then
        note_outcome "$1" "skipped: $2" "$(results_size)"
        echo "== $1: skipped: $2"
    fi
}

chosen() { [[ -z $only || ",$only," == *",$1,"* ]]; }

# note_outcome NAME OUTCOME BYTES: of the results before it
note_outcome() {
    names+=("$1")
    outcomes+=("$2")
    begins+=("$3")
    ends+=("$(results_size)")
}

results_size() { stat -Lc %s "$results" 2>/dev/null || echo 0; }

# what will run, for how long at most
plan() {
    local sum=0 line="" i
    planning=1
    "$preset"
    planning=""
    for ((i = 0; i < ${#names[@]}; i++)); do
        line+="${line:+, }${names[i]} ${slices[i]} s"
        sum=$((sum + slices[i]))
    done
    echo "parts, and how long each may take: ${line:-none}; in all $sum s of $budget s"
    ((sum <= budget)) || echo "The last ones will be cut short or skipped."
    names=()
}

outcome_lines() {
    local i
    for ((i = 0; i < ${#names[@]}; i++)); do
        printf '%s\t%s\t%s\t%s\n' "${names[i]}" "${begins[i]}" "${ends[i]}" "${outcomes[i]}"
    done
}

has() {
    [[ -n $dry ]] || "$python" -c "import sys, importlib.util as u; sys.exit(u.find_spec('$1') is None)" 2>/dev/null
}

gpu_state() {
    command -v nvidia-smi >/dev/null || return 0
    nvidia-smi --query-gpu=clocks.sm,clocks.mem,temperature.gpu,power.draw,memory.used,utilization.gpu \
        --format=csv,noheader
}

others_on_gpu() {
    command -v nvidia-smi >/dev/null || return 0
    nvidia-smi --query-compute-apps=pid,used_memory --format=csv,noheader
}

# ---- the environment

cd "$root" || exit 2
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
if [[ -n ${WHEELS:-} ]]; then
    wheels=$(mktemp -d)
    if ! "$python" -m pip install --quiet --no-index --no-deps --target "$wheels" "$WHEELS"/*.whl; then
        echo "error: WHEELS: the wheels in $WHEELS cannot be installed" >&2
        exit 2
    fi
    export PYTHONPATH=$PYTHONPATH:$wheels
fi
export OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false
export PYTHONFAULTHANDLER=1 PYTHONUNBUFFERED=1  # a crash says where, and a part that is stopped how far it came
if [[ -z $small && -z $dry ]] && triton_cache=$(mktemp -d); then
    export TRITON_CACHE_DIR=$triton_cache
    if [[ -n ${TRITON_CACHE:-} ]] && ! tar -C "$triton_cache" -xzf "$TRITON_CACHE"; then
        echo "error: TRITON_CACHE: $TRITON_CACHE cannot be unpacked, so kernels are compiled anew"
        failed=1
    fi
fi
if [[ -n $small ]]; then
    export CUDA_VISIBLE_DEVICES=""
    size=(--size tiny)
    kernel_tests=(tests/kernels/test_gate.py)
    cases=64
    loads=2x64
    image=(--sides 64 --steps 2 --burst 1 --idle 0 --sustained 0)
    peers=("${image[@]}")
    unseen=("${image[@]}" --unseen-length 1)
    load=(--size tiny)
    scaling=(--size tiny --modes one,sp2 --sides 64)
    offload=(-k budget)
    first_kernels=(--sides 128)
    first_step=(--cases 64)
    first_image=("${image[@]}")
    second_loads=2x64
    second_modes=sp2
    large=(--sides 128 --steps 2 --burst 1 --idle 0 --sustained 0)
else
    size=(--size real)
    kernel_tests=(tests/test_graphs.py tests/model/test_vae_on_devices.py tests/kernels)
    cases=1024,512,16x512
    loads=20x1024,16x512
    image=(--sides 1024,512 --idle 3 --sustained 5)
    peers=(--sides 1024,512 --idle 0 --sustained 0 --peer diffusers)
    unseen=(--sides 1024 --burst 1 --idle 0 --sustained 0 --unseen-length)
    load=(--size real --layers 4)
    scaling=(--size real --layers 4 --sides 1024,2048)
    offload=(-m gpu)
    first_kernels=(--sides 1024)
    first_step=(--cases 1024,256,16x512)
    first_image=(--sides 1024 --idle 1 --sustained 3)
    second_loads=20x1024
    second_modes=tp2,sp2
    large=(--sides 2048 --burst 2 --idle 1 --sustained 0)
fi

echo "results: $results"
date -u +"%Y-%m-%d %H:%M:%S UTC"
others=""
if [[ -z $small ]]; then
    command -v nvidia-smi >/dev/null && nvidia-smi
    others=$(others_on_gpu)
fi
if [[ -z $dry ]] && ! "$python" -m bench.machine ${small:+--no-gpu}; then
    exit 2
fi

first() {
    part kernel-checks 60 kernels "${size[@]}" "${first_kernels[@]}" --check-only
    part step 110 step "${size[@]}" "${first_step[@]}" --quantization none,fp8 --profile "$traces"
    part image 65 image "${size[@]}" "${first_image[@]}" --quantization none,fp8
    tests_of_kernels 75
}

second() {
    part throughput 80 throughput "${size[@]}" --loads "$second_loads" --quantization fp8,none
    part kernels 60 kernels "${size[@]}"
    part fidelity 50 fidelity "${size[@]}"
    part shared-gpu 60 shared_gpu --modes "$second_modes"
}

everything() {
    tests_of_kernels 120
    part shared-gpu 80 shared_gpu --modes tp2,sp2,cfg,tp2xsp2
    part step 50 step "${size[@]}" --cases "$cases"
    part image 90 image "${size[@]}" "${image[@]}" --quantization none,fp8
    part kernels 60 kernels "${size[@]}"
    part throughput 90 throughput "${size[@]}" --loads "$loads"
    part fidelity 60 fidelity "${size[@]}"
    if has diffusers; then
        part peers 100 image "${size[@]}" "${peers[@]}"
    else
        skip peers "diffusers is not there (WHEELS names a folder that has its wheel)"
    fi
    part scaling 60 scaling "${scaling[@]}"
    part image-2048 60 image "${size[@]}" "${large[@]}" --quantization none,fp8
    part unseen-length 60 image "${size[@]}" "${unseen[@]}"
    if has diffusers; then
        part offload 40 kernel_tests "${offload[@]}" tests/test_offload.py
        part load 60 load "${load[@]}" --device auto --cache warm --repeats 2
    else
        skip offload "diffusers is not there (WHEELS names a folder that has its wheel)"
        skip load "diffusers is not there, which writes the checkpoint"
    fi
    if [[ -z $small ]]; then
        part symmetric 40 shared_gpu --modes tp2 --symmetric-memory
    else
        skip symmetric "a CPU has no symmetric memory"
    fi
}

tests_of_kernels() {
    if has pytest; then
        part kernel-tests "$1" kernel_tests "${kernel_tests[@]}"
    else
        part kernel-tests "$1" kernels "${size[@]}" --check-only
    fi
}

plan
"$preset"
((${#names[@]})) || { echo "error: --only: none of $only is a part of --$preset" >&2; exit 2; }

# ---- what came of it

echo
[[ -n $small ]] && echo "Tiny sizes on a CPU: these figures say nothing about speed."
if [[ -n $others ]]; then
    echo "WARNING: other processes were on the GPU at the start, so no figure here is valid:"
    echo "$others"
fi
status=1
if [[ -z $dry ]]; then
    outcome_lines | timeout 60 "$python" -m bench.summary "$results"
    status=$?
    ((status == 0)) || failed=1
fi
if ((status != 0 && status != 3)); then # 3: the table is there, and a part of it has no figure
    for ((i = 0; i < ${#names[@]}; i++)); do
        printf '%-14s %s\n' "${names[i]}" "${outcomes[i]}"
    done
fi
echo "$SECONDS s of $budget s; results: $results"
exit "$failed"
