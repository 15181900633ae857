"""The race: relcache, fewer steps and other caches at equal measured time."""
