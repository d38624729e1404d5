"""One room for each kind of study: `python -m experiments NAME --preset smoke|quick|paper`."""
