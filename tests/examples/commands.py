"""The project's root, and its command."""

import subprocess
import sys
from pathlib import Path

from time_limits import LIMIT_S

ROOT = Path(__file__).resolve().parents[2]


def unitrain(*arguments: str, cwd: Path = ROOT, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """`python -m unitrain` with these arguments; never raises for its exit code."""
    return subprocess.run(
        [sys.executable, "-m", "unitrain", *arguments],
        cwd=cwd, input=stdin, capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
