"""Arrays in, matplotlib figures out. Nothing is shown or saved here; colours are safe for the colour-blind."""

from isouq.plots._domains import domain_distributions, domain_proxies, rejection
from isouq.plots._maps import curves, map_grid, unit_range
from isouq.plots._palette import BLUE, GREEN, GREY, ORANGE, PURPLE
from isouq.plots._qa import qa_auroc, qa_correlations, qa_length, qa_rejection
from isouq.plots._trace import trace_course, trace_tokens

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "PURPLE",
    "curves",
    "domain_distributions",
    "domain_proxies",
    "map_grid",
    "qa_auroc",
    "qa_correlations",
    "qa_length",
    "qa_rejection",
    "rejection",
    "trace_course",
    "trace_tokens",
    "unit_range",
]
