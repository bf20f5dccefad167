"""Block ids: who holds them, which of them can be found again by their tokens. Never sees the memory behind an id."""
