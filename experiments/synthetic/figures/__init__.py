"""Draw the figures of the synthetic experiments."""
