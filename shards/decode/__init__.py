"""Encoded images to pixels, on the CPU or by nvJPEG, and the way up that EXIF states."""
