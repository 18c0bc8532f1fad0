# shellcheck shell=bash
# Sourced by bench/gpu.sh: runs parts one after the other, each in its slice of the time, and notes what came of them.

names=()
outcomes=()
begins=() # bytes of the results before each part, and after it
ends=()
failed=0

# part NAME SLICE BENCHMARK WORDS…
part() {
    local name=$1 slice left=$((SECONDS < budget ? budget - SECONDS : 0)) status outcome
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
