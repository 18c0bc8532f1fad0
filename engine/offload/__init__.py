"""What comes and goes on a small device: blocks copied ahead of their use, components that take turns."""
