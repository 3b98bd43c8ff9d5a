"""What `maskshards bench gpu` measures, one module a kind of part."""
