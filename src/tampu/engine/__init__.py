"""The loop and its thread: requests in, token ids out. Never sees text, tensors or HTTP."""
