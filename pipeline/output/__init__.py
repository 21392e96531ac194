"""An output folder: one owner, one record per shard, and what of it is done."""
