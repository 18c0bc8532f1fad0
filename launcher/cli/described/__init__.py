"""What `krea2 info` tells, part by part."""
