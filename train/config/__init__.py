"""The keys of a run, their checks, and how a recipe becomes a configuration."""
