"""What all APIs share: how the engine is asked for images, and the forms of answers, errors and streams."""
