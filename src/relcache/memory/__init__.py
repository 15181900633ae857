"""How much the cache will hold, and what keeps it within a limit."""
