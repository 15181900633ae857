"""The commands of `relcache bench`, and what they share with those of `cli`."""
