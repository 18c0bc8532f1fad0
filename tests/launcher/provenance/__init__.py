"""Which files pictures were made with."""
