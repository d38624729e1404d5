"""Choose the variants, the covariances and the studies of every preset."""
