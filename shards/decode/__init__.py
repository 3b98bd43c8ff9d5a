"""Encoded images to pixels, on the CPU or by nvJPEG."""
