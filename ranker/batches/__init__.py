"""Training batches out of score tables, and out of the shards where a table holds no pixels."""
