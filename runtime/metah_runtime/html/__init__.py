"""Pages for people: the gallery of search results."""
