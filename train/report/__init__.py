"""What a run looks like, as pages and pictures."""
