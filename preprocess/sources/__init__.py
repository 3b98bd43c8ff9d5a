"""One module for each layout that a source data set can have."""
