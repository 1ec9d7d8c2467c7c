"""Train by a settings file, and evaluate, export and load the runs that result.

Data crosses the room in this order: settings and flags, parsed objects, a run folder with checkpoints, versions.
"""

from unitrain.training.evaluate_and_export import evaluate, export, load_model
from unitrain.training.fit_and_resume import fit, resume
from unitrain.training.training_run import RunResult

__all__ = ["RunResult", "evaluate", "export", "fit", "load_model", "resume"]
