"""What is run and how: a checkpoint's sizes from its json files, the engine's options, the tokens around a prompt."""
