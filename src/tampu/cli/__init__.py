"""The command line and composition root: the only reader of flags and environment; builds every object once."""
