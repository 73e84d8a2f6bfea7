"""HTML pages: what they share, and the gallery of search results."""
