"""Scoring one shard, without Ray."""
