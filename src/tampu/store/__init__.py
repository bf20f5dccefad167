"""What must survive a restart, in SQLite or PostgreSQL. Knows no HTTP, no engine and no text."""
