"""The quality of samples: measures and metrics."""
