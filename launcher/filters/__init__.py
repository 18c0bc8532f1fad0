"""Content filters: checks of prompts and pictures in processes of their own, and what they say of each."""
