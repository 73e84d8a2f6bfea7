"""Losses, one file a family; each is a plain function of tensors, tested against a reference."""
