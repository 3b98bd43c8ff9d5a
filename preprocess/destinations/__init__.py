"""Where shards are written and when they become a data set."""
