"""Tampu: Workers AI's `@cf/meta/llama-3.1-8b-instruct-fast` on your own machine. The import has no side effects."""

__version__ = "0.1.0"
