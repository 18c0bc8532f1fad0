"""`krea2 cluster`: many engines behind one address, on Ray Serve."""
