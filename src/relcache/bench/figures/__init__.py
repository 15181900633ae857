"""Pictures and clips side by side, drawn from arrays."""
