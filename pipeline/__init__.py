"""From shards to the score table, and what every job stands on."""
