"""Turn scores into the numbers of the tables."""
