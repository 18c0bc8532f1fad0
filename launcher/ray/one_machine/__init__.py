"""A Ray of one machine's own: started, watched and ended with the command that wants it, `krea2 cluster run`."""
