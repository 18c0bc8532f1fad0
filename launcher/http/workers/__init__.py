"""Several HTTP processes on one socket: each watched and replaced by itself, and what they share in the run folder."""
