"""What a row of logits becomes: penalties, token masks, filters and the draw, defined once, in NumPy.

This is the oracle: the native sampler does the same steps in the same order and precision. Refuses to know models,
batches and text.
"""
