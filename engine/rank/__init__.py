"""One rank: its shard of the model, the images in flight, and everything that a step makes of them."""
