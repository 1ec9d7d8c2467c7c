"""Run folders: made, locked, recorded, listed and compared."""

from unitrain.runs.compare import Comparison, compare_runs
from unitrain.runs.listing import RunSummary, find_run, list_runs, read_summary
from unitrain.runs.run_folder import RunFolder, check_experiment
from unitrain.runs.saved_run import SavedRun, load_run

__all__ = [
    "Comparison",
    "RunFolder",
    "RunSummary",
    "SavedRun",
    "check_experiment",
    "compare_runs",
    "find_run",
    "list_runs",
    "load_run",
    "read_summary",
]
