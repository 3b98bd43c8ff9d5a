"""Triton kernels, one module a function; the modules above are their doors and their plain twins."""
