# shellcheck shell=bash
# Sourced by bench/gpu.sh: what is on this machine.

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
