"""Executes one step on one device and owns its weights and KV memory: native, NumPy oracle, fake; BERT encoder."""
