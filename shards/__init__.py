"""The shard format in both directions: write, order, read, batch, crop on the device."""
