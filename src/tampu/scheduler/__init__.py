"""Decides the next step. Sees token ids and block ids only: no arrays of numbers, no clock, no I/O, no threads."""
