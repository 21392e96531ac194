"""Images as people look at them: out of tables, shards and pruned sets, with their scores and what stays of them."""
