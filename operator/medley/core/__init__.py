"""Values and arithmetic that every part shares; standard library only, no I/O and no clock."""
