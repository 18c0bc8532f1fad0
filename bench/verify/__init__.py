"""Compares the engine with diffusers on a checkpoint that both can load, stage by stage: `python -m bench.verify`.

__main__: what is asked for; subject: what is verified; oracle: what diffusers computes; ours and ranks: what the engine
computes of the same; checks and judging: what differs, and what may; report: what to paste; resources: what there is
room and time for.
"""
