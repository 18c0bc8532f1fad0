"""Ways to save steps, what their decisions save at another size, and how like pictures are."""
