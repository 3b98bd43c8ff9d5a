"""Train a Mask2Former head on a frozen DINO backbone from tar shards of run-length masks."""
