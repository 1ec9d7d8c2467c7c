"""Trainings of the examples killed with -9 at random moments, and resumed until they end.

`python benchmarks/kill_resume.py [--kills 50] [--seed 0] [--example curve_fitting] [--epochs 60] [--json]`. After
each kill every checkpoint must be whole, and the run that was resumed again and again must end with the
weights, average, optimizer and counters of one that never was interrupted. Exit code 1 where one does not.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from unitrain.training.checkpoint import checkpoint_fault

ROOT = Path(__file__).resolve().parents[1]
COMPARED = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "global_step", "epoch")


def main() -> int:
    """Kill, resume, compare; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="kill -9 in all, over as many runs as it takes")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--example", default="curve_fitting", help="folder below examples/")
    parser.add_argument("--epochs", type=int, default=60, help="epochs of each run")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), options)
    print(json.dumps(figures) if options.json else "\n".join(f"{k:<28} {v}" for k, v in figures.items()))
    return 1 if figures["corrupt files"] or figures["unequal runs"] or figures["failed resumes"] else 0


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of all runs together."""
    moments = random.Random(options.seed)  # noqa: S311 - moments, not secrets
    begun = time.monotonic()
    whole = fit(folder / "whole", options)
    if whole.wait() != 0:
        raise SystemExit("the uninterrupted run failed")
    took_s = time.monotonic() - begun
    expected = state(newest(folder / "whole", "last"))
    figures = {
        "seed": options.seed,
        "kills": 0,
        "runs": 0,
        "corrupt files": 0,
        "failed resumes": 0,
        "unequal runs": 0,
    }
    while figures["kills"] < options.kills:
        figures["runs"] += 1
        place = folder / f"run{figures['runs']}"
        process = fit(place, options)
        while True:
            try:
                code = process.wait(timeout=moments.uniform(0.3, 0.9) * took_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                figures["kills"] += 1
                saved = list(place.glob("*/*/checkpoints/*.ckpt"))
                figures["corrupt files"] += sum(checkpoint_fault(path) is not None for path in saved)
                if not saved or figures["kills"] >= options.kills:
                    process = fit(place, options) if not saved else resume(place)
                    if saved:
                        code = process.wait()
                        break
                    continue
                process = resume(place)
            else:
                break
        if code != 0:
            figures["failed resumes"] += 1
        elif not equal(state(newest(place, "last")), expected):
            figures["unequal runs"] += 1
    return figures


def fit(place: Path, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """A new run of the example."""
    settings = f"examples/{options.example}/settings.yaml"
    return start("--config", settings, "--experiments_dir", str(place), "--publish", "null", "--early_stopping", "null",
                 "--trainer.max_epochs", str(options.epochs))  # fmt: skip


def resume(place: Path) -> subprocess.Popen[bytes]:
    """The newest run that has a checkpoint, again."""
    return start("--resume", str(newest(place, "last").parents[1]))


def start(*flags: str) -> subprocess.Popen[bytes]:
    """A training in a process of its own."""
    return subprocess.Popen([sys.executable, "-m", "unitrain", "fit", "--quiet", *flags], cwd=ROOT)


def newest(place: Path, name: str) -> Path:
    """The newest run's checkpoint."""
    return max(place.glob(f"*/*/checkpoints/{name}.ckpt"), key=lambda path: path.stat().st_mtime)


def state(path: Path) -> dict[str, Any]:
    """What must not depend on interruptions."""
    content = torch.load(path, weights_only=True)
    return {key: content[key] for key in COMPARED if key in content}


def equal(a: Any, b: Any) -> bool:
    """Whether two trees of plain data and tensors are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


if __name__ == "__main__":
    sys.exit(main())
