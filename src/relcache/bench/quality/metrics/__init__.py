"""How good is a sample? One file per metric family; all need the extra `cli`."""
