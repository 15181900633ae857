"""One file per family: the specs of its transformers, as data."""
