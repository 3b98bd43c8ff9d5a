"""Where files lie: local folders, web servers and object stores, read by exact ranges."""
