"""The size of a cache, and the choice of options that keeps it within a limit."""
