"""The experiments on small problems, by name; `all` runs every one."""

from experiments.experiment import Experiment
from experiments.synthetic import covariance, decomposition, maps, scaling, spectrum, validation

EXPERIMENTS = {
    "validation": Experiment(validation.cells, validation.summarise),
    "maps": Experiment(maps.cells, maps.summarise),
    "scaling": Experiment(scaling.cells, scaling.summarise, ("widths",)),
    "covariance": Experiment(covariance.cells, covariance.summarise),
    "decomposition": Experiment(decomposition.cells, decomposition.summarise, ("widths",)),
    "spectrum": Experiment(spectrum.cells, spectrum.summarise, ("widths",)),
}
