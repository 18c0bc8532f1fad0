"""Nothing that a filter has not let pass leaves by any way out: all bytes that left are recorded, and searched."""
