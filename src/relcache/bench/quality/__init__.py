"""How good a sample is: measures and metrics."""
