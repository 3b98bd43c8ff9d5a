"""Recipes and class lists: values only."""
