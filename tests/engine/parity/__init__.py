"""Whole images by ranks in every mode, against diffusers and against one rank."""
