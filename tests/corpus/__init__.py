"""Module patterns that other people write, and the judge that compares each served model with the live module."""

import warnings
from importlib import import_module
from pathlib import Path


def load_all() -> None:
    """Import every file of patterns, each of which adds its own to `case.CASES`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of the patterns are deprecated, and are written all the same
        for path in sorted(Path(__file__).parent.glob("*.py")):
            if path.stem not in ("__init__", "case", "judge") and not path.stem.startswith("test_"):
                import_module(f"{__name__}.{path.stem}")
