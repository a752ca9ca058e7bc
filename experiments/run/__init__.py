"""One run: from flags to a compiled simulation, its rounds and its files."""
