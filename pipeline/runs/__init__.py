"""What every run over shards has: a log, progress, a stop, an end, and a status afterwards."""
