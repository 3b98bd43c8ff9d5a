"""Operators of the heads, each beside its fused twin where it has one."""
