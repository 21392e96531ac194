"""Which patches and which images stay."""
