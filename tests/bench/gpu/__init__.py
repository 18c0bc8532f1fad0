"""bench/gpu.sh and what it runs its parts with."""
