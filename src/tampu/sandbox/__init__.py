"""Runs the JavaScript of `functions` where it can do no harm. Knows no models, no conversations and no HTTP."""
