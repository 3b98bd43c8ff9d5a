"""Frozen backbone, adapter and segmentation heads."""
