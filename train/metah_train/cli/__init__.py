"""The commands of metah-train, one file each."""
