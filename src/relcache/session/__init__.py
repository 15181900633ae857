"""Sessions: find the caller, request, step and branch of each call; correct gaps; make reports."""
