"""The use cases: a validated request through `text` and `engine` to typed events and a usage count. Knows no HTTP."""
