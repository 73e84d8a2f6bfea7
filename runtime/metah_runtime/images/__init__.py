"""Images: what is read of a file, how it is decoded, and the workers that decode."""
