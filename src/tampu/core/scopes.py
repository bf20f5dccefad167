"""What an API token may be made for."""

SCOPE_READ = "ai:read"  # inference, lists
SCOPE_WRITE = "ai:write"  # all of ai:read, and what changes state
SCOPES = (SCOPE_READ, SCOPE_WRITE)
