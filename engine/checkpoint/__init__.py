"""Where weights come from: a checkpoint opened and checked, what each rank holds of it, and how it is loaded."""
