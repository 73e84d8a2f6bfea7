"""The commands of metah-search that run the model."""
