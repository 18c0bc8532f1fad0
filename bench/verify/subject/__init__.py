"""What is verified: checkpoints, the images to make of each, and the stages that the model goes through."""
