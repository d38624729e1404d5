"""Arrays in, matplotlib figures out. Nothing is shown or saved here; colours are safe for the colour-blind."""

from isouq._extras import extra

with extra("plots"):
    from isouq.plots._maps import curves, map_grid, unit_range
    from isouq.plots._palette import BLUE, GREEN, GREY, ORANGE, PURPLE
    from isouq.plots._trace import trace_tokens

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "PURPLE",
    "curves",
    "map_grid",
    "trace_tokens",
    "unit_range",
]
