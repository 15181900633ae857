"""Transformers of diffusers that are not cached, each with the reason."""

UNSUPPORTED: dict[str, str] = {}
