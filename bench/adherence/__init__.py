"""Whether pictures show what prompts ask for, judged from their pixels: `python -m bench.adherence`."""
