"""Models and LoRAs by their Hugging Face names: in the cache of this machine, or downloaded into it."""
