"""A training killed at its file events by ckpt-chaos, a third party's judge, and resumed by `fit --resume auto`.

`python benchmarks/resume_chaos.py [--kills 50] [--epochs 3] [--work DIR]`, after `pip install ckpt-chaos`. It kills a
training before a file is made, renamed or removed, and with a file cut in half, runs the same command again, and
compares the weights at the end with those of a run that was never killed. Exit code 1 where one fails.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMPARED = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "global_step", "epoch")


def main() -> int:
    """Run ckpt-chaos over a training, or print the weights' hash of one; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="file events to kill at, spread over the run")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of each run")
    parser.add_argument(
        "--work", type=Path, help="where ckpt-chaos keeps its runs; default: a new temporary folder"
    )
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument(
        "--hash", type=Path, help="print the hash of the run's end below this folder, and nothing else"
    )
    options = parser.parse_args()
    if options.hash is not None:
        print(hash_of(options.hash))
        return 0
    if find_spec("ckpt_chaos") is None:
        print("resume_chaos: ckpt-chaos is not installed; pip install ckpt-chaos", file=sys.stderr)
        return 2
    work = options.work or Path(tempfile.mkdtemp(prefix="ckpt-chaos-")) / "runs"
    fit = [
        sys.executable, "-m", "unitrain", "fit", "--config", "examples/curve_fitting/settings.yaml", "--experiments_dir",
        "{out}", "--resume", "auto", "--quiet", "--publish", "null", "--embeddings", "null", "--trainer.max_epochs",
        str(options.epochs),
    ]  # fmt: skip
    judge = f"{sys.executable} {Path(__file__).resolve()} --hash {{out}}"
    chaos = [
        sys.executable,
        "-m",
        "ckpt_chaos",
        "run",
        "--work",
        str(work),
        "--max-points",
        str(2 * options.kills),  # half before a file event, half with a file cut, as far as there are so many
    ]
    chaos += ["--jobs", str(options.jobs), "--result-cmd", judge, "--", *fit]
    return subprocess.run(chaos, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False).returncode


def hash_of(out: Path) -> str:
    """SHA-256 of all that must not depend on a kill, in the newest checkpoint below a folder."""
    import torch

    newest = max(out.glob("*/*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    content = torch.load(newest, weights_only=True)
    digest = hashlib.sha256()
    _add(digest, {key: content[key] for key in COMPARED if key in content})
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", value: object) -> None:
    if isinstance(value, dict):
        for key in value:
            digest.update(str(key).encode())
            _add(digest, value[key])
    elif isinstance(value, list | tuple):
        for each in value:
            _add(digest, each)
    else:
        data = value.numpy().tobytes() if hasattr(value, "numpy") else repr(value).encode()
        digest.update(data)


if __name__ == "__main__":
    sys.exit(main())
