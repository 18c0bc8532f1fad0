#!/usr/bin/env bash
# Everything that is worth knowing on a machine with a GPU, smallest and most important first, in under 9 minutes:
# tests of the kernels, parity of ranks that share the GPU, then the benchmarks.
#
#     bench/gpu.sh [--first | --second] [--out FOLDER] [--only PART,PART…] [--small] [--dry-run]
#
# --first is for a GPU on which nothing has run yet, in 330 s: kernels against float64, steps with a profile, images and
# the kernels' tests. --second goes on in 300 s, once what failed has been mended: many images at once, kernels timed,
# fidelity, ranks that share the GPU. Both fit into a quarter of an hour of a lent GPU: 630 s in all.
#
# Needs python3 (PYTHON names another) with torch, triton and safetensors; neither zmq nor msgspec nor a package index.
# With transformers, fidelity makes the demo's images too. WHEELS names a folder of wheels (diffusers, FlashAttention …)
# to use besides, installed nowhere. What Triton compiles is kept in FOLDER/triton-cache.tar.gz, and TRITON_CACHE names
# such a file to begin with; traces of steps go to FOLDER/traces. KREA2_COMMIT names the commit that results are of, in
# place of git.
#
# BUDGET_S (540, or the preset's) seconds are shared out: each part has a slice of its own, which is told before the
# first begins, and is skipped, which is said, when fewer than LEAST_S (15) are left. A part that fails, or that leaves
# no number, does not stop the others, but the exit status is 1 then. Results are added to one JSON-lines file as they
# come, and all output to one log: FOLDER/results.jsonl and results.log (--out, or OUT), else
# bench/results/DATE-GPU.jsonl and .log. At the end, or after Ctrl-C, comes a table: each part, what came of it, its key
# figures, and what they are compared with. Copy back both files, triton-cache.tar.gz and traces/. A connection that is
# lost ends the run: begin it in tmux, or with nohup.
#
# --small runs every part at a tiny size on the CPU. --dry-run runs none and writes nothing: it prints the plan and the
# commands, and ends with 2 where this machine would be refused. No setting of the GPU is changed.
set -uo pipefail

usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; }
refuse() { echo "error: $*" >&2; exit 2; }
absolute() { [[ $1 == /* ]] && echo "$1" || echo "$PWD/$1"; }

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
preset=everything
least=${LEAST_S:-15}
folder=${OUT:-}
only=()
small=""
dry=""
while (($#)); do
    case $1 in
    --out=* | --only=*) set -- "${1%%=*}" "${1#*=}" "${@:2}"; continue ;;
    --out)
        [[ -n ${2:-} ]] || refuse "--out needs a folder"
        folder=$2
        shift
        ;;
    --only)
        read -ra only <<<"$(tr -s ',[:space:]' ' ' <<<"${2:-}")"
        ((${#only[@]})) || refuse "--only needs the names of parts"
        shift
        ;;
    --first | --second)
        [[ $preset == everything ]] || refuse "--first or --second, not both"
        preset=${1#--}
        ;;
    --small) small=1 ;;
    --dry-run) dry=1 ;;
    --help | -h) usage; exit 0 ;;
    *) refuse "unknown option $1 (--help lists them)" ;;
    esac
    shift
done
case $preset in
first) budget=${BUDGET_S:-330} ;;
second) budget=${BUDGET_S:-300} ;;
*) budget=${BUDGET_S:-540} ;;
esac
[[ $budget,$least =~ ^[0-9]+,[0-9]+$ ]] ||
    refuse "BUDGET_S and LEAST_S must be whole numbers of seconds, got $budget and $least"
[[ $python != */* ]] || python=$(absolute "$python")
command -v "$python" >/dev/null || refuse "PYTHON: there is no $python"

# ---- where results go

gpu=cpu
if [[ -z $small ]] && command -v nvidia-smi >/dev/null; then
    gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader --id=0 | tr '[:upper:] ' '[:lower:]-')
fi
name=results
[[ -n $folder ]] || { folder=$root/bench/results; name=$(date -u +%Y-%m-%d)-$gpu; }
folder=$(absolute "$folder")
results=$folder/$name.jsonl
log=$folder/$name.log
cache_file=$folder/triton-cache.tar.gz
traces=$folder/traces
[[ -z ${TRITON_CACHE:-} ]] || TRITON_CACHE=$(absolute "$TRITON_CACHE")
[[ -z ${WHEELS:-} ]] || WHEELS=$(absolute "$WHEELS")
wheels=""
triton_cache=""
log_writer=""
current="" # the part that runs

# Of the results and the log, which are this run's alone from here on.
open_files() {
    local reason file status
    reason=$(LC_ALL=C mkdir -p "$folder" 2>&1) || refuse "the folder $folder cannot be made: ${reason##*: }"
    if command -v flock >/dev/null && { exec 9<"$folder"; } 2>/dev/null; then
        flock -n 9
        status=$?
        ((status != 1)) || refuse "another run writes into $folder: wait for its end, or name another folder with --out"
    fi
    for file in "$results" "$log"; do
        reason=$({ : >>"$file"; } 2>&1) || refuse "$file cannot be written: ${reason##*: }"
    done
    # Ctrl-C goes to all processes of a terminal, and what is said then is to be in the log.
    exec 3>&1 4>&2 > >(trap '' INT TERM HUP; exec tee -a "$log" 9<&-) 2>&1
    log_writer=$!
}

finish() {
    local status=$?
    trap '' INT TERM HUP
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
    if [[ -n $log_writer ]]; then
        exec >&3 2>&4
        wait "$log_writer" 2>/dev/null
        if (($? == 1)); then
            echo "error: the log, $log, is not whole" >&2
            ((status)) || status=1
        fi
    fi
    exit "$status"
}

# stop SIGNAL STATUS: what was measured so far is told nevertheless
stop() {
    trap '' INT TERM HUP
    local child
    if [[ -n $current ]]; then
        for child in $(jobs -pr); do
            [[ $child == "$log_writer" ]] || { kill "$child" && wait "$child"; } 2>/dev/null
        done
        note_outcome "$current" "stopped after $((SECONDS - began)) s" "$before"
    fi
    echo
    echo "== stopped by SIG$1"
    [[ -z $log_writer ]] || report 5
    exit "$2"
}
trap finish EXIT
trap 'stop INT 130' INT
trap 'stop TERM 143' TERM
trap 'stop HUP 129' HUP

# ---- parts

names=()
outcomes=()
begins=() # bytes of the results before each part, and after it
ends=()
failed=0

# part NAME SLICE BENCHMARK WORDS…
part() {
    local name=$1 slice left=$((budget - SECONDS)) status outcome
    known+=("$name")
    chosen "$name" || return 0
    if [[ -n $planning ]]; then
        plan_part "$@"
        return 0
    fi
    if ! fit "$2" "$left"; then
        skip "$name" "$left s of $budget s are left"
        return 0
    fi
    command_of "$slice" "${@:3}"
    echo
    echo "== $name (at most $slice s): ${command[*]}"
    before=$(results_size)
    gpu_state
    began=$SECONDS
    current=$name
    timeout -k 5 "$slice" "${command[@]}" </dev/null 9<&- &
    wait "$!"
    status=$?
    current=""
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

# skip NAME REASON
skip() {
    known+=("$1")
    chosen "$1" || return 0
    if [[ -n $planning ]]; then
        plan+=("$(printf '  %-14s skipped: %s' "$1" "$2")")
    else
        note_outcome "$1" "skipped: $2" "$(results_size)"
        echo "== $1: skipped: $2"
    fi
}

# fit SLICE LEFT: sets slice to what a part gets of the seconds that are left; fails if they are too few
fit() {
    (($2 >= least)) || return 1
    slice=$(($1 < $2 - least / 3 ? $1 : $2 - least / 3))
    ((slice > 0)) # to `timeout`, 0 is no limit
}

# command_of SLICE BENCHMARK WORDS…: sets command
command_of() {
    command=("$python" -m bench.survive "bench.$2" "${@:3}" --seconds "$(($1 > 20 ? $1 - 10 : $1 / 2))")
    command+=(--json "$results")
}

chosen() { ((${#only[@]} == 0)) || [[ " ${only[*]} " == *" $1 "* ]]; }

# note_outcome NAME OUTCOME BYTES: of the results before it
note_outcome() {
    names+=("$1")
    outcomes+=("$2")
    begins+=("$3")
    ends+=("$(results_size)")
}

results_size() { stat -Lc %s "$results" 2>/dev/null || echo 0; }

# What will run, and for how long at most if each part takes all of its slice: sets plan and commands, lines of text.
make_plan() {
    planning=1 planned=$SECONDS
    plan=() commands=() known=()
    "$preset"
    planning=""
}

plan_part() {
    local slice said when=""
    if fit "$2" "$((budget - planned))"; then
        planned=$((planned + slice))
        said="$slice s"
        ((slice == $2)) || said+=" instead of $2 s, if all before it take their time"
    else
        slice=$2
        said="skipped if all before it take their time, else up to $slice s"
        when=", if there is time"
    fi
    plan+=("$(printf '  %-14s %s' "$1" "$said")")
    command_of "$slice" "${@:3}"
    commands+=("== $1 (at most $slice s$when): ${command[*]}")
}

print_plan() {
    echo "parts, and how long each may take, of $budget s in all:"
    printf '%s\n' "${plan[@]}"
    [[ -z $no_transformers || ${plan[*]} != *" fidelity "* ]] ||
        echo "transformers is not there, without which fidelity leaves out the demo's images"
}

outcome_lines() {
    local i
    for ((i = 0; i < ${#names[@]}; i++)); do
        printf '%s\t%s\t%s\t%s\n' "${names[i]}" "${begins[i]}" "${ends[i]}" "${outcomes[i]}"
    done
}

# report SECONDS: what came of it. SECONDS: that the table may take
report() {
    local i status
    echo
    [[ -n $small ]] && echo "Tiny sizes on a CPU: these figures say nothing about speed."
    if [[ -n $others ]]; then
        echo "WARNING: other processes were on the GPU at the start, so no figure here is valid:"
        echo "$others"
    fi
    outcome_lines | timeout -k 1 "$1" "$python" -m bench.summary "$results" "$log"
    status=$?
    ((status == 0)) || failed=1
    if ((status != 0 && status != 3)); then # 3: the table is there, and a part of it has no figure
        for ((i = 0; i < ${#names[@]}; i++)); do
            printf '%-14s %s\n' "${names[i]}" "${outcomes[i]}"
        done
    fi
    echo "$SECONDS s of $budget s; results: $results"
}

lacks() { ! "$python" -c "import sys, importlib.util as u; sys.exit(u.find_spec('$1') is None)" >/dev/null 2>&1; }

gpu_state() {
    command -v nvidia-smi >/dev/null || return 0
    nvidia-smi --query-gpu=clocks.sm,clocks.mem,temperature.gpu,power.draw,memory.used,utilization.gpu \
        --format=csv,noheader
}

others_on_gpu() {
    command -v nvidia-smi >/dev/null || return 0
    nvidia-smi --query-compute-apps=pid,used_memory --format=csv,noheader
}

# ---- what the parts are

if [[ -n $small ]]; then
    size=(--size tiny)
    kernel_tests=(tests/engine/kernels/test_gate.py)
    cases=64
    loads=2x64
    image=(--sides 64 --steps 2 --burst 1 --idle 0 --sustained 0)
    peers=("${image[@]}" --peer diffusers)
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
    kernel_tests=(tests/engine/rank/test_cuda_graphs.py tests/engine/model/test_vae_on_devices.py tests/engine/kernels)
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
    if [[ -z $no_diffusers$no_transformers ]]; then
        part peers 100 image "${size[@]}" "${peers[@]}"
    else
        skip peers "${no_diffusers:-$no_transformers} is not there (WHEELS names a folder that has its wheel)"
    fi
    part scaling 60 scaling "${scaling[@]}"
    part image-2048 60 image "${size[@]}" "${large[@]}" --quantization none,fp8
    part unseen-length 60 image "${size[@]}" "${unseen[@]}"
    if [[ -z $no_diffusers ]]; then
        part offload 40 kernel_tests "${offload[@]}" tests/engine/offload/test_offload.py
        part load 60 load "${load[@]}" --device auto --cache warm --repeats 2
    else
        skip offload "diffusers is not there (WHEELS names a folder that has its wheel)"
        skip load "diffusers is not there, which writes the checkpoint"
    fi
}

tests_of_kernels() {
    if [[ -z $no_pytest ]]; then
        part kernel-tests "$1" kernel_tests "${kernel_tests[@]}"
    else
        part kernel-tests "$1" kernels "${size[@]}" --check-only
    fi
}

no_pytest="" no_diffusers="" no_transformers="" # else their names
make_plan
for name in "${only[@]}"; do
    [[ " ${known[*]} " == *" $name "* ]] || refuse "--only: $name is no part of this run, which has ${known[*]}"
done

# ---- the environment

cd "$root" || exit 2
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
if [[ -n ${WHEELS:-} ]]; then
    wheels=$(mktemp -d)
    "$python" -m pip install --quiet --no-index --no-deps --target "$wheels" "$WHEELS"/*.whl ||
        refuse "WHEELS: the wheels in $WHEELS cannot be installed"
    export PYTHONPATH=$PYTHONPATH:$wheels
fi
export OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false
export PYTHONFAULTHANDLER=1 PYTHONUNBUFFERED=1  # a crash says where, and a part that is stopped how far it came
[[ -z $small ]] || export CUDA_VISIBLE_DEVICES=""
! lacks pytest || no_pytest=pytest
! lacks diffusers || no_diffusers=diffusers
! lacks transformers || no_transformers=transformers
others=""
[[ -n $small ]] || others=$(others_on_gpu)
machine=$("$python" -m bench.machine ${small:+--no-gpu} 2>&1)
refused=$?
make_plan
if [[ -n $dry ]]; then
    echo "results would be in $results"
    print_plan
    ((${#commands[@]} == 0)) || printf '%s\n' "${commands[@]}"
fi
((refused == 0)) || { echo "$machine" >&2; exit 2; }
[[ -z $dry ]] || exit 0

# ---- the run

open_files
if [[ -z $small ]] && triton_cache=$(mktemp -d); then
    export TRITON_CACHE_DIR=$triton_cache
    if [[ -n ${TRITON_CACHE:-} ]] && ! tar -C "$triton_cache" -xzf "$TRITON_CACHE"; then
        echo "error: TRITON_CACHE: $TRITON_CACHE cannot be unpacked, so kernels are compiled anew"
        failed=1
    fi
fi
echo "results: $results"
date -u +"%Y-%m-%d %H:%M:%S UTC"
[[ -n $small ]] || ! command -v nvidia-smi >/dev/null || nvidia-smi
echo "$machine"
print_plan
"$preset"
report 60
exit "$failed"
