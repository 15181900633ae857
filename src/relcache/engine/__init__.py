"""The caching of one call of a transformer: patch units, decide on steps, keep and forecast features."""
