"""Estimate the size of a cache, and choose options that keep it within a limit."""
