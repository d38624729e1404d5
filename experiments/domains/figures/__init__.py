"""Draw the figures of the experiments on texts; compute nothing."""
