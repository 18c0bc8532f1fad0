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

for file in files parts plan report machine presets; do
    source "$root/bench/gpu/$file.sh" || exit 2
done

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

trap finish EXIT
trap 'stop INT 130' INT
trap 'stop TERM 143' TERM
trap 'stop HUP 129' HUP

# ---- what will run

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
