"""How the demo checkpoints are made: what they draw, and the training of every part. Nothing here is installed."""
