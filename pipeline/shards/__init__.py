"""WebDataset shards: from what a user writes to samples, and samples back into tars."""
