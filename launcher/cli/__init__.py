"""The command line: `krea2 generate`, `serve`, `info`, `convert` and `keys`."""
