"""The matched loss of all layers at once, the linear loss, and their parts."""
