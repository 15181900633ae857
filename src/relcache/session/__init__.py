"""Whose call it is, which request, step and branch; corrections; the record and the report."""
