"""The device that a rank computes on: which one it is, how far it has got, and whether its memory ran out."""
