"""From shards to the score table; the part of the project that everything else stands on."""
