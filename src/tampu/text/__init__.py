"""Messages and tools to token ids, and token ids back to text, stop matches and tool calls.

Knows no engine, no HTTP, no model file: it gets a `TokenizerSpec` and core values, and imports only `core`.
"""
