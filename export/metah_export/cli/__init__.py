"""The commands of metah-export, one file each."""
