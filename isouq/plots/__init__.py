"""Arrays in, matplotlib figures out. Nothing is shown or saved here; colours are safe for the colour-blind."""

from isouq.plots._agreement import agreement, scaling_curves, scaling_map
from isouq.plots._covariance import covariance_agreement, pareto, proxy_maps
from isouq.plots._decomposition import decomposition, decomposition_problems, perturbation
from isouq.plots._domains import domain_distributions, domain_proxies, rejection
from isouq.plots._maps import curves, map_grid, unit_range
from isouq.plots._spectrum import spectrum, spectrum_agreement
from isouq.plots._trace import trace_tokens

__all__ = [
    "agreement",
    "covariance_agreement",
    "curves",
    "decomposition",
    "decomposition_problems",
    "domain_distributions",
    "domain_proxies",
    "map_grid",
    "pareto",
    "perturbation",
    "proxy_maps",
    "rejection",
    "scaling_curves",
    "scaling_map",
    "spectrum",
    "spectrum_agreement",
    "trace_tokens",
    "unit_range",
]
