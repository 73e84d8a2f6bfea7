"""The search server: an index and its model behind HTTP. Needs the extra ``serve``."""
