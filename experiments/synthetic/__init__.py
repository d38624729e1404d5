"""The experiments on small problems with a sampled reference posterior."""
