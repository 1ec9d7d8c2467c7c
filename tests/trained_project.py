"""One small training for all tests that only read a finished run."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from time_limits import LIMIT_S

from unitrain.file_lock import locked

SOURCE = Path(__file__).parent / "training" / "project"


@dataclass(frozen=True)
class Trained:
    """A project with one finished run and its published versions. Tests must not change it.

    Attributes:
        project: root of the project.
        run_dir: folder of the run.
        result: output of `fit --json`.
    """

    project: Path
    run_dir: Path
    result: dict[str, Any]

    def copy_to(self, folder: Path) -> Path:
        """Copy the project, for a test that changes it, and return the run folder in the copy."""
        shutil.copytree(self.project, folder)
        return folder / self.run_dir.relative_to(self.project)


def train_once(shared: Path) -> Trained:
    """Train in `shared`, or read what another worker has trained there."""
    shared.mkdir(parents=True, exist_ok=True)
    project, output = shared / "a project", shared / "fit.json"
    with locked(shared / "lock", timeout_s=LIMIT_S):
        if not output.exists():
            shutil.copytree(SOURCE, project)
            command = [sys.executable, "-m", "unitrain", "fit", "--json", "--config"]
            done = subprocess.run(
                [*command, str(project / "problem" / "settings.yaml")],
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            output.write_text(done.stdout)
    result = json.loads(output.read_text())
    return Trained(project, Path(result["run_dir"]), result)
