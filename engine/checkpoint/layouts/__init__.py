"""Every tensor of Krea 2 by name, shape and split, and what each is called in the files that people have."""
