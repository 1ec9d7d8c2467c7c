"""Training: a settings file's model and data, with everything that a run is expected to bring."""

from unitrain.training.result import RunResult
from unitrain.training.starting import fit, resume

__all__ = ["RunResult", "fit", "resume"]
