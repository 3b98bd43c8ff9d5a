"""Source data sets become tar shards of images and run-length masks, once; no torch here."""
