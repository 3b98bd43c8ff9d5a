"""What `maskshards` answers about shards, one module a command."""
