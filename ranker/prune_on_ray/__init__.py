"""Pruning many shards on the actors of Ray Data."""
