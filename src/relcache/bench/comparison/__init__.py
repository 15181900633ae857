"""Methods compared on the same seeds: the work, the pool, the table."""
