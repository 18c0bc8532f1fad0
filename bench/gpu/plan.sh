# shellcheck shell=bash
# Sourced by bench/gpu.sh: what will run, and for how long at most, told before anything begins.

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
