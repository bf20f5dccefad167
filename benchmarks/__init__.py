"""Benchmarks. Each prints a card for people and one last JSON line for machines; none is a test."""
