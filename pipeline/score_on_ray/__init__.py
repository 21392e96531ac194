"""Scoring many shards on the actors of a cluster."""
