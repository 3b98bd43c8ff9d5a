"""Format version 1: records, runs, tar shards, index and manifest; nothing else knows a byte of it."""
