"""Checkpoints of a run and which of them stay."""
