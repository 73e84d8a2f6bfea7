"""Keeping a catalogue: which files an index knows, what changed, labels, duplicates, drift."""
