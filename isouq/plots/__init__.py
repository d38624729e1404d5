"""Draw matplotlib figures from arrays. Nothing is shown or saved; the colours suit the colour-blind."""

from isouq._extras import extra

with extra("plots"):
    from isouq.plots._maps import curves, map_grid, unit_range
    from isouq.plots._palette import BLUE, GREEN, GREY, ORANGE, PURPLE
    from isouq.plots._style import ONE_COLUMN, TWO_COLUMNS, style
    from isouq.plots._trace import trace_tokens

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ONE_COLUMN",
    "ORANGE",
    "PURPLE",
    "TWO_COLUMNS",
    "curves",
    "map_grid",
    "style",
    "trace_tokens",
    "unit_range",
]
