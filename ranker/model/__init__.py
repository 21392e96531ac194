"""The ranker: a vision transformer, its weights on disk, its fast inference."""
