"""What comes before an engine starts: its configuration, its model's files, and `launch`, which starts it."""
