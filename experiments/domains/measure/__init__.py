"""Fine-tune an encoder, and measure the covariances, the rejection curves and the memory of it."""
