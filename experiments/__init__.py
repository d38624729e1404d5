"""One module per table or figure: `python -m experiments NAME --preset smoke|quick|paper`."""
