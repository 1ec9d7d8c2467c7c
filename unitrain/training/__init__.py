"""Training: a settings file's model and data, with everything that a run is expected to bring."""

from unitrain.training.fitting import RunResult, fit

__all__ = ["RunResult", "fit"]
