"""What a request asks of its steps: which of them may be saved, and in which its images are guided."""
