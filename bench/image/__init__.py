"""One image from prompt ids to its file, stage by stage: `python -m bench.image`."""
