"""The processes of ranks: those that execute steps, and the front-end's end of them, which starts and replaces them."""
