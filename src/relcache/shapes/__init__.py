"""Shape-only forward passes, and the FLOPs counted from them."""
