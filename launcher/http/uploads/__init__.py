"""What is sent to be drawn over: forms with files, and pictures within JSON, read in memory and within limits."""
