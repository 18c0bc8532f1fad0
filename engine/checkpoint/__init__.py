"""Where weights come from: a checkpoint opened and checked, the format of each rank's part, and how that is loaded."""
