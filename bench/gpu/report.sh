# shellcheck shell=bash
# Sourced by bench/gpu.sh: the table at the end.

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
