"""Figures and pages made of a folder of results."""
