"""State what is run: the posteriors and studies of each preset, with their times (the lab cards)."""
