"""What processes and clients say to each other, as msgspec structs; the sockets and keys that carry it; limits."""
