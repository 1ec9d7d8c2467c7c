"""Requests at full speed while a training publishes: how many fail, and which versions answered.

`python benchmarks/hot_swap.py [--seconds 60] [--versions 10] [--json]`. A real Triton serves a repository of
its own, a real training of the curve_fitting example publishes into it, and one client streams all
along. Exit code 1 where a request failed, or fewer versions than asked for were published meanwhile.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unitrain import Client
from unitrain.repository import Repository
from unitrain.serving import Server

ROOT = Path(__file__).resolve().parents[1]
MODEL = "curve_fitting"


def main() -> int:
    """Run it and print the figures; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long requests are sent")
    parser.add_argument(
        "--versions", type=int, default=10, help="versions to be published meanwhile, at least"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), options.seconds)
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:<22} {value}")
    good = figures["failed"] == 0 and figures["published"] >= options.versions
    return 0 if good and figures["without version"] == 0 else 1


def measure(folder: Path, seconds: float) -> dict[str, Any]:
    """Serve, train and ask at once for `seconds` seconds."""
    repository = folder / "repository"
    minutes, rest = divmod(int(seconds) + 15, 60)
    with Server(repository) as server:
        training = subprocess.Popen(
            [sys.executable, "-m", "unitrain", "fit", "--config", "examples/curve_fitting/settings.yaml",
             "--publish.repository", str(repository), "--publish.policy", "every",
             "--experiments_dir", str(folder / "experiments"),
             "--trainer.max_epochs", "-1", "--trainer.max_time", f"00:00:{minutes:02d}:{rest:02d}",
             "--early_stopping", "null", "--embeddings", "null", "--quiet"],
            cwd=ROOT,
        )  # fmt: skip
        try:
            server.wait_for(MODEL)
            return ask(server.url, Repository(repository), seconds)
        finally:
            training.terminate()
            training.wait(60)


def ask(url: str, repository: Repository, seconds: float) -> dict[str, Any]:
    """Stream single samples from the moment that the first version answers."""
    versions: Counter[int] = Counter()
    failed: Counter[str] = Counter()
    unnamed = 0
    with Client(url) as client:
        first, start = repository.versions(MODEL)[-1], time.monotonic()
        for result in client.stream(MODEL, samples(start + seconds)):
            if result.outputs is None:
                failed[str(result.error)] += 1
            elif not result.version:
                unnamed += 1
            else:
                versions[result.version] += 1
        took = time.monotonic() - start
    return {
        "requested samples": sum(versions.values()) + sum(failed.values()) + unnamed,
        "failed": sum(failed.values()),
        "without version": unnamed,
        "seconds": round(took, 1),
        "samples/s": round(sum(versions.values()) / took),
        "published": repository.versions(MODEL)[-1] - first,
        "versions that answered": len(versions),
        "errors": dict(failed.most_common(3)),
    }


def samples(until_s: float) -> Iterator[dict[str, np.ndarray]]:
    """Points of the grid over and over."""
    grid = np.linspace(-4.5, 4.5, 1000, dtype=np.float32).reshape(-1, 1)
    for index in itertools.count():
        if time.monotonic() > until_s:
            return
        yield {"x": grid[index % len(grid)]}


if __name__ == "__main__":
    sys.exit(main())
