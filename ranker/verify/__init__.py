"""Outputs held against what was recorded of them: bytes of every file, and rows scored again."""
