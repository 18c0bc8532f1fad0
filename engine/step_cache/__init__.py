"""Computing less of an image's steps: which steps are saved, and what they are made from instead."""
