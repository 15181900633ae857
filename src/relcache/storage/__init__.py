"""Storage of features between steps: packing, offloading, and snapshots of values."""
