"""Train the model that comes with the repository again: `python -m examples.signals_clustering_demo.pretrained`.

The version goes into triton_repo/pretrained_signals, its run into pretrained_run beside this file. Facts
of the machine are removed: absolute paths become relative to the project; host, process and uncommitted changes are
dropped.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unitrain.atomic_files import write_json
from unitrain.repository.manifest import FILE_NAME

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = Path("examples/signals_clustering/settings_pretrained.yaml")
MODEL = "pretrained_signals"
RUNS = Path("examples/signals_clustering/pretrained_run")
KEPT = ("run.json", "settings.yaml", "embeddings")
"""Of the run, beside TensorBoard's events; its sources are the project's own, its weights are in the version."""


def train(folder: Path) -> tuple[Path, Path]:
    """(run folder, version folder) of a training by the settings, in a copy of the project that `folder` becomes.

    One thread trains: sums of several are not the same to the bit on a machine with another number of them.

    Raises:
        RuntimeError: the training failed; its reason is in the message.
    """
    for name in ("models", "datamodules", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", RUNS.name))
    done = subprocess.run(
        [sys.executable, "-m", "unitrain", "fit", "--config", str(SETTINGS)],
        cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the training ended with exit code {done.returncode}: {done.stderr.strip()}")
    (run_dir,) = (folder / "experiments").glob("*/*/")
    return run_dir, folder / "triton_repo" / MODEL / "1"


def ship(run_dir: Path, version_dir: Path, root: Path = ROOT) -> tuple[Path, Path]:
    """Put a version and its run where they are tracked, in the place of the earlier ones; where they are then.

    Args:
        run_dir: the run's folder.
        version_dir: the version's folder.
        root: root of the target project.
    """
    folder = run_dir.parents[2]
    run = RUNS / run_dir.parent.name / run_dir.name
    relative = {str(run_dir): str(run), f"{folder}/": "", str(folder): "."}
    shutil.rmtree(root / RUNS, ignore_errors=True)
    (root / run).mkdir(parents=True)
    for name in KEPT:
        source = run_dir / name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, root / run / name)
    for events in run_dir.glob("events.out.tfevents.*"):
        shutil.copyfile(events, root / run / events.name)
    for events in sorted((root / run).rglob("events.out.tfevents.*")):
        time, *_ = events.name.removeprefix("events.out.tfevents.").split(".")
        events.rename(events.with_name(f"events.out.tfevents.{time}"))  # host and process are the rest

    record = json.loads((root / run / "run.json").read_text())
    write_json(root / run / "run.json", _replaced(record | {"host": None, "pid": None}, relative))

    model_dir = root / "triton_repo" / MODEL
    shutil.rmtree(model_dir, ignore_errors=True)
    shutil.copytree(version_dir.parent, model_dir)
    manifest = model_dir / version_dir.name / FILE_NAME
    write_json(manifest, _replaced(json.loads(manifest.read_text()), relative))
    machine_bound = naming(root / run, str(folder), str(ROOT)) + naming(model_dir, str(folder), str(ROOT))
    if machine_bound:
        raise RuntimeError(f"{machine_bound[0]} names a folder of this machine")
    return root / run, model_dir / version_dir.name


def naming(folder: Path, *texts: str) -> list[Path]:
    """The files below a folder that hold one of the texts."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if any(text.encode() in path.read_bytes() for text in texts)]


def _replaced(value: Any, texts: dict[str, str]) -> Any:
    """A text, or every text of a tree, with parts of it replaced."""
    if isinstance(value, str):
        for old, new in texts.items():
            value = value.replace(old, new)
        return value
    if isinstance(value, dict):
        return {key: _replaced(item, texts) for key, item in value.items()}
    return [_replaced(item, texts) for item in value] if isinstance(value, list) else value


def main(argv: Sequence[str]) -> int:
    """Train, and put version and run where they are tracked."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        for path in ship(*train(Path(folder).resolve())):
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            print(f"{path.relative_to(ROOT)}  {size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
