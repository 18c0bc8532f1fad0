"""What a request asks of its steps: how many and at which noise levels, which may be saved, which are guided."""
