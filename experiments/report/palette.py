"""The colours of the experiments' figures, those of isouq.plots, and a marker for each."""

from isouq.plots import BLUE, GREEN, GREY, ORANGE, PURPLE

SERIES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PURPLE, "D"), (GREY, "v"))

__all__ = ["BLUE", "GREEN", "GREY", "ORANGE", "PURPLE", "SERIES"]
