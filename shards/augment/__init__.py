"""Resize, crop, flip and colour on the device, from numbers drawn beforehand."""
