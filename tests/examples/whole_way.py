"""An example's way from its settings to a served answer, by the commands that a person would type."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from triton_server import TritonServer

ROOT = Path(__file__).resolve().parents[2]


def unitrain(*arguments: str, cwd: Path = ROOT, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """`python -m unitrain` with these arguments; never raises for its exit code."""
    return subprocess.run(
        [sys.executable, "-m", "unitrain", *arguments],
        cwd=cwd, input=stdin, capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip


@dataclass(frozen=True)
class WholeWay:
    """Trains, serves and asks one example, everything it leaves lying in a test's own folder.

    Attributes:
        triton: the server that the example is published to.
        folder: where runs and answers are put.
    """

    triton: TritonServer
    folder: Path

    def fit(self, config: Path, *flags: str) -> Path:
        """The run's folder; by then its training ended well and its newest version is served."""
        experiments = self.folder / "experiments"
        before = set(experiments.glob("*/*/"))
        done = unitrain(
            "fit", "--config", str(config), "--experiments_dir", str(experiments),
            "--publish.repository", str(self.triton.repository), *flags,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        (run_dir,) = set(experiments.glob("*/*/")) - before
        newest = max(int(p.name) for p in (self.triton.repository / run_dir.parent.name).glob("[1-9]*"))
        self.triton.wait_for(run_dir.parent.name, newest)
        return run_dir

    def predict(self, model: str, *flags: str) -> subprocess.CompletedProcess[str]:
        """`predict` of a served model, ended well; its output is in `.stdout`."""
        done = unitrain("predict", model, "--url", self.triton.url, *flags)
        assert done.returncode == 0, done.stdout + done.stderr
        return done
