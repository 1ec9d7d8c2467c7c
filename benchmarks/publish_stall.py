"""What one publication costs the training thread, beside one copy of the weights and Lightning's `to_onnx`.

    python benchmarks/publish_stall.py [--repeats 15]

Two sizes: about 10k parameters and 35 MB. In one process, interleaved, so that ratios hold on a busy machine:

- copy: one copy of all weights;
- call: what the training thread does for a publication (copy the weights, run the live module on four rows,
  hand both to the worker);
- forward: the live module on four rows, alone;
- loop: how much longer some training steps take with a publication among them than without (the worker
  shares the cores and Python's lock with them);
- version: from the call to a whole version on the disk;
- to_onnx: `LightningModule.to_onnx(dynamo=True)` on the training thread, as a callback would call it.
"""

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from unitrain.onnx_export.module_weights import weights_of
from unitrain.onnx_export.state_outside_weights import ModuleState
from unitrain.onnx_export.undisturbed_forward import untouched
from unitrain.publish import Lineage, Outcome, Publisher, Worker
from unitrain.repository import Repository
from unitrain.settings import Publish

SIZES = {"10k parameters": (32, 96, 100), "35 MB": (512, 2790, 10)}
"""By name: width, hidden width, training steps in the loop."""


class Net(LightningModule):
    """Three linear layers."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        layers = [
            nn.Linear(width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 4),
        ]
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.net(x)}


def train(module: Net, x: Tensor, optimizer: torch.optim.Optimizer, steps: int) -> float:
    """Seconds that a number of training steps take."""
    started_s = time.perf_counter()
    for _ in range(steps):
        optimizer.zero_grad()
        module(x)["y"].square().mean().backward()
        optimizer.step()
    return time.perf_counter() - started_s


def timed(action: object) -> float:
    """Seconds that a call takes."""
    started_s = time.perf_counter()
    action()  # type: ignore[operator]
    return time.perf_counter() - started_s


def measure(width: int, hidden: int, steps: int, repeats: int, folder: Path) -> dict[str, list[float]]:
    """The figures of one size, in milliseconds."""
    module = Net(width, hidden)
    x = torch.randn(64, width)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4)
    outcomes: list[tuple[float, Outcome]] = []
    publisher = Publisher.prepare(
        module,
        {"x": x[:16]},
        repository=Repository(folder / "repository"),
        model="net",
        settings=Publish(),
        lineage=Lineage("benchmark/run", str(folder)),
    )
    worker = Worker(publisher, lambda outcome: outcomes.append((time.perf_counter(), outcome)))
    names = ("copy", "forward", "call", "loop", "version", "to_onnx", "steps")
    figures: dict[str, list[float]] = {k: [] for k in names}

    def publish(step: int) -> float:
        worker.submit(publisher.capture(module, kind="raw", step=step, epoch=0))
        return time.perf_counter()

    for step in range(repeats + 1):  # the first is the warm-up
        alone_s = train(module, x, optimizer, steps)
        copy_s = timed(lambda: weights_of(module))
        with torch.no_grad():
            forward_s = timed(lambda: module(x[:4]))
        count = len(outcomes)
        called_s = time.perf_counter()
        returned_s = publish(step)
        beside_s = train(module, x, optimizer, steps)
        while len(outcomes) == count:
            time.sleep(0.0005)
        if outcomes[-1][1].error:
            raise outcomes[-1][1].error
        if step:
            figures["copy"].append(copy_s * 1e3)
            figures["forward"].append(forward_s * 1e3)
            figures["call"].append((returned_s - called_s) * 1e3)
            figures["loop"].append((returned_s - called_s + beside_s - alone_s) * 1e3)
            figures["steps"].append(alone_s * 1e3)
            figures["version"].append((outcomes[-1][0] - called_s) * 1e3)
    path = folder / "lightning.onnx"
    for _ in range(3):
        figures["to_onnx"].append(
            timed(lambda: module.to_onnx(path, (x[:16],), dynamo=True, verbose=False)) * 1e3
        )
    worker.finish()
    return figures


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--size", choices=SIZES, help="only this one")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(
        "| size | copy [ms] | forward [ms] | call [ms] | call - copy - forward [ms] | loop [ms] (steps alone) | version [ms] | to_onnx [ms] | to_onnx / call |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, (width, hidden, steps) in SIZES.items():
        if options.size not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            figures = measure(width, hidden, steps, options.repeats, Path(folder))
        m = {key: statistics.median(values) for key, values in figures.items()}
        extra = statistics.median(
            call - copy - forward
            for call, copy, forward in zip(figures["call"], figures["copy"], figures["forward"], strict=True)
        )
        print(
            f"| {name} | {m['copy']:.2f} | {m['forward']:.2f} | {m['call']:.2f} | {extra:.2f} | {m['loop']:.1f} ({m['steps']:.0f}) | "
            f"{m['version']:.0f} (max {max(figures['version']):.0f}) | {m['to_onnx']:.0f} | {m['to_onnx'] / m['call']:.0f} |",
            flush=True,
        )
    walk_ms = many_submodules(options.repeats)
    print(f"\nbeside copy and forward, CPU of the training thread, 403 submodules: {walk_ms:.1f} ms")
    return 0


def many_submodules(repeats: int) -> float:
    """Milliseconds of CPU that the walks over a module of 403 submodules take at each publication, at the least."""
    blocks = (nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU()) for _ in range(100))
    module = Submodules(nn.Sequential(*blocks))
    state = ModuleState.of(module, lambda clone: clone(torch.ones(2, 2, 1, 1)))
    weights = weights_of(module)
    times_s = []
    for _ in range(repeats + 1):
        started_s = time.thread_time()
        with untouched(module, weights):
            pass
        state.holds(module)
        times_s.append(time.thread_time() - started_s)
    return min(times_s) * 1e3


class Submodules(LightningModule):
    """Whatever it is given, as a LightningModule."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


if __name__ == "__main__":
    sys.exit(main())
