"""Sockets: which addresses there are, listening there, and how many connections a process has room for."""
