"""Turn results into the rows of the tables."""
