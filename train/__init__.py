"""Crops to model to matched loss to optimiser to metric."""
