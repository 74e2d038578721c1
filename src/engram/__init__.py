"""Engram keeps a language model learning without forgetting."""
