"""The index on disk: immutable checksummed segments under one atomically replaced manifest."""

from metah_runtime.index.index import Index

__all__ = ["Index"]
