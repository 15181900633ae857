"""Plots and side-by-side sheets, drawn from saved results only."""
