"""The shared nouns. Knows no arrays, no text processing, no HTTP: standard library only."""
