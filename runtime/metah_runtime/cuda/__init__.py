"""Exact Hamming search on NVIDIA GPUs; imported only when a GPU is asked for."""
