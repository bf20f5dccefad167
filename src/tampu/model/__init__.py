"""What a Llama is: configuration, RoPE, checkpoint reading, weight names, and where models live on disk.

Refuses to know activations, devices and text: weights leave this package as stored bytes, tokenizers as facts.
"""
