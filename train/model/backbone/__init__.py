"""The frozen backbone: names, weights and features."""
