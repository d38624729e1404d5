"""The families of pretrained models: their configurations, their modules, and where each parameter stands."""
