"""A base model: how it is found, loaded and pinned, and what differs by its architecture."""
