"""A model of more than 2 GB, published twice: more than one ONNX file can hold.

    python benchmarks/publish_large.py [--gigabytes 2.2]

Needs about six times as much memory and twice as much disk (under the system's folder for temporary files).
Prints how long proof, publications and verification took, and the version's files; exit 1 where one failed.
"""

import argparse
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from unitrain.onnx_export.module_weights import weights_of
from unitrain.publish import Lineage, Publisher, Request
from unitrain.repository import Repository
from unitrain.repository.verify import verify_version
from unitrain.settings import Publish

WIDTH = 8192


class Wide(LightningModule):
    """Square layers, as many as make up the size."""

    def __init__(self, n_layers: int) -> None:
        super().__init__()
        self.first = nn.Linear(4, WIDTH)
        self.layers = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(n_layers)))
        self.last = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.last(self.layers(self.first(x)))}


def main() -> int:
    """Publish, verify, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.2)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    module = Wide(round(options.gigabytes * 1e9 / (4 * WIDTH * WIDTH)))
    size = sum(p.nbytes for p in module.parameters())
    print(f"{size / 1e9:.2f} GB of weights", flush=True)
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        started_s = time.perf_counter()
        publisher = Publisher.prepare(
            module,
            {"x": torch.randn(4, 4)},
            repository=Repository(Path(folder, "repository")),
            model="wide",
            settings=Publish(),
            lineage=Lineage("benchmark/run", folder),
        )
        swappable = publisher.template.swappable
        print(f"proof of the export: {time.perf_counter() - started_s:.1f} s, {swappable=}", flush=True)
        for step in (1, 2):
            with torch.no_grad():
                module.last.bias += 1
            started_s = time.perf_counter()
            manifest = publisher.publish(Request(weights_of(module), "raw", step, 0))
            print(
                f"version {manifest.version}: {time.perf_counter() - started_s:.1f} s, {manifest.parity}",
                flush=True,
            )
            version_dir = publisher.repository.version_dir("wide", manifest.version)
            print({path.name: path.stat().st_size for path in sorted(version_dir.iterdir())})
        for check in verify_version(version_dir):
            failed |= check.passed is not True
            print(f"{check.name}: {check.passed} {check.detail}")
        publisher.close()
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
