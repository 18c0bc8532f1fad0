"""What diffusers makes of the requests: its pipeline loaded, checked, run, and its stages recorded."""
