"""Pseudo-scores of views: arrays in, arrays out."""
