"""The command line: a file for each command, shared options in `options`, printing in `terminal`."""
