"""Text to batches: read, tokenise once, sample by a few integers."""
