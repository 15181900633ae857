"""Pipelines loaded and sampled in batches, and the samples as files."""
