"""HTTP only: routes, wire schemas, envelopes, limits. Never sees token ids, tensors or the engine's insides."""
