"""Turn results into numbers: rows of table.csv, and means with intervals (summary.csv)."""
