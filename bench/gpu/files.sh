# shellcheck shell=bash
# Sourced by bench/gpu.sh: its results and its log, what is tidied up at the end, and how a signal ends it.

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
    [[ -z $log_writer ]] || report 20
    exit "$2"
}
