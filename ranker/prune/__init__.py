"""Pruning one shard, without Ray; and what a prune run is asked to do."""
