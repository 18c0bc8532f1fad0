"""Lists of words, and how a prompt is searched for them through the disguises that people give to words."""
