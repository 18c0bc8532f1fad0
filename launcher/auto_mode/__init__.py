"""`--parallel auto`: predicts how long a step takes in each mode and chooses the fastest that fits."""
