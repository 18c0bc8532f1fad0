"""How an engine is started: `launch`, what is settled before, and where a model's files are."""
