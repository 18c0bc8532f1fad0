"""Many engines behind one address, on Ray Serve: see docs/many-machines.md."""
