"""From files to batches: sources, formats, audit, labels, loading, shards."""
