"""From a split to ragged batches on the device."""
