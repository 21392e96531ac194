"""Ticks that have new corpora scored."""
