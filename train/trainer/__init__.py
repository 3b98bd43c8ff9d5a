"""A run: build, step, validate, resume."""
