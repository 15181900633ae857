"""What happens in a call of a transformer: units patched, steps decided, features kept and forecast."""
