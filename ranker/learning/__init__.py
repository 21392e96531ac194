"""Losses, steps, validation and agreement: arithmetic that knows no files and no Ray."""
