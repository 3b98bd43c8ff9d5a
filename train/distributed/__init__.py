"""Other ranks: joining, agreeing, signs of life and stop signals."""
