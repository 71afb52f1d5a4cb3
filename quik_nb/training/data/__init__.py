"""The batches of one rank: from tensors in memory, from datasets, from streams."""
