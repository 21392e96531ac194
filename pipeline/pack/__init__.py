"""Folders of photos into shards."""
