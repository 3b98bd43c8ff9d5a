"""What is trained on the frozen features."""
