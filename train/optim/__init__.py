"""Optimiser, learning rate and weight average."""
