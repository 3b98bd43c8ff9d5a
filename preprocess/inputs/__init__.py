"""One source sample to one record, with every check of its files."""
