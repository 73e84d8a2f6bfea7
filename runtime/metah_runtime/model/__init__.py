"""The model: its bundle on disk, its card, and the encoder that runs it."""
