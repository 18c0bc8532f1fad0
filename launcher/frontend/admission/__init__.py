"""Which requests a front-end lets in: those that can be done in time, within what their key may have, and only once."""
