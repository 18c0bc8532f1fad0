"""The engine, package by package as it is laid out; parity holds what only the whole of it can show."""
