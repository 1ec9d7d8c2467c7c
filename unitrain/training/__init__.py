"""Training: a settings file's model and data, with everything that a run is expected to bring."""

from unitrain.training.fit_and_resume import fit, resume
from unitrain.training.training_run import RunResult

__all__ = ["RunResult", "fit", "resume"]
