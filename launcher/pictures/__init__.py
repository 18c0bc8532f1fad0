"""Pictures that clients send: read under limits, laid out for the model, and joined with what was drawn."""
