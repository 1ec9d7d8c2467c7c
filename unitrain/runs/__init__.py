"""Run folders: made, locked, recorded, listed and compared."""

from unitrain.runs.compare import Comparison, compare_runs
from unitrain.runs.folder import RunFolder, check_experiment
from unitrain.runs.listing import RunSummary, find_run, list_runs, read_summary

__all__ = [
    "Comparison",
    "RunFolder",
    "RunSummary",
    "check_experiment",
    "compare_runs",
    "find_run",
    "list_runs",
    "read_summary",
]
