"""Losses, one file per family; each is a plain function of tensors, tested against a reference."""
