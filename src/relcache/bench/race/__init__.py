"""The race: what a user would pick, at equal measured time."""
