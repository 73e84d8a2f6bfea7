"""The commands of metah-search, one file each."""
