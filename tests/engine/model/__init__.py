"""The parts of the model, each against its original in diffusers or transformers."""
