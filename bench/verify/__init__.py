"""Compares the engine with diffusers on a checkpoint that both can load, stage by stage: `python -m bench.verify`.

__main__: what is asked for; models: what is verified; oracle: what diffusers computes; ours, ranks and
stages: what the engine computes of the same; checks and judging: what differs, and what may; report: what to paste;
resources: what there is room and time for.
"""
