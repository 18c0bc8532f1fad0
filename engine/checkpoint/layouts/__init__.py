"""Every tensor of Krea 2 by name, shape and split, and its name in the files that people have."""
