"""Figures and pages from a folder of results."""
