"""What ends service elsewhere: bodies, logs nobody reads, pauses, descriptors, load. Real servers, so mostly slow."""
