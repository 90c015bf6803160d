"""Shards of speech: their index, the order of samples, and the way from bytes to micro-batches."""
