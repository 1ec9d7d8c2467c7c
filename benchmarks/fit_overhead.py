"""What `fit` at its defaults costs a step, beside a bare Trainer and a plain PyTorch loop with a DataLoader.

`python benchmarks/fit_overhead.py [--rounds 5] [--json]`. A tiny MLP with batches of 64, and the same with a step
of about 5 ms. All three validate after each epoch; `fit` also averages, logs, saves checkpoints, takes
snapshots of embeddings and publishes. Timed is what lies between the first and the last step.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from paired import line, ratio, summary
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import unitrain
from unitrain.loaders import ArrayLoader

PROJECT = """
import torch
from pytorch_lightning import LightningDataModule
from benchmark_model import Net, train, val
from unitrain.loaders import ArrayLoader

class Data(LightningDataModule):
    def train_dataloader(self): return ArrayLoader(train(), batch_size=64, shuffle=True)
    def val_dataloader(self): return ArrayLoader(val(), batch_size=640)
"""
TIMED: list[float] = []
WORK = {"passes": 0}


def train() -> tuple[torch.Tensor, torch.Tensor]:
    """6,400 samples."""
    x = torch.randn(6400, 8, generator=torch.Generator().manual_seed(0))
    return x, x.sum(1, keepdim=True)


def val() -> tuple[torch.Tensor, torch.Tensor]:
    """640 samples."""
    x = torch.randn(640, 8, generator=torch.Generator().manual_seed(1))
    return x, x.sum(1, keepdim=True)


def net() -> nn.Module:
    """The tiny MLP."""
    return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1))


def work() -> None:
    """What makes a step take 5 ms: matrix products."""
    a = torch.ones(192, 192)
    for _ in range(WORK["passes"]):
        a = a @ a * 1e-3


class Net(LightningModule):
    """The same model to the bare Trainer and to `fit`."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The prediction."""
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        work()
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)

    def on_train_start(self) -> None:
        self.begun = time.perf_counter()

    def on_train_end(self) -> None:
        TIMED.append(time.perf_counter() - self.begun)


def plain(epochs: int) -> float:
    """Seconds of a loop written by hand."""
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(*train()), batch_size=64, shuffle=True)
    begun = time.perf_counter()
    for _ in range(epochs):
        model.train()
        for x, y in loader:
            work()
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            x, y = val()
            nn.functional.mse_loss(model(x), y).item()
    return time.perf_counter() - begun


def bare(epochs: int) -> float:
    """Seconds of a Trainer with everything off."""
    trainer = Trainer(max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                      enable_model_summary=False, accelerator="cpu", num_sanity_val_steps=0)  # fmt: skip
    trainer.fit(Net(), ArrayLoader(train(), batch_size=64, shuffle=True), ArrayLoader(val(), batch_size=640))
    return TIMED[-1]


def ours(epochs: int, root: Path) -> float:
    """Seconds of `fit` at its defaults."""
    settings = root / "settings.yaml"
    settings.write_text(
        "model: {class_path: benchmark_model.Net}\ndata: {class_path: benchmark_data.Data}\n"
        f"trainer: {{max_epochs: {epochs}, accelerator: cpu}}\nearly_stopping: {{patience: 1000}}\n"
    )
    unitrain.fit(settings, quiet=True)
    return TIMED[-1]


def rounds_of(epochs: int, root: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round; the first round is not counted."""
    ways = {
        "plain loop with DataLoader": lambda: plain(epochs),
        "bare Trainer": lambda: bare(epochs),
        "fit": lambda: ours(epochs, root),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way, run in ways.items():
            took = run()
            if turn:
                seconds[way].append(took)
    return seconds


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    sys.modules["benchmark_model"] = sys.modules[__name__]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "pyproject.toml").write_text("")
        (root / "benchmark_data.py").write_text(PROJECT)
        for name, epochs, target_s in (("tiny MLP", 20, 0.0), ("tiny MLP, 5 ms a step", 12, 5e-3)):
            WORK["passes"] = 0
            while target_s and _seconds(work) < target_s:
                WORK["passes"] += 1
            kept = rounds_of(epochs, root, options.rounds)
            steps = epochs * 100
            found[name] = {way: {"us a step": summary(values, 1e6 / steps)} for way, values in kept.items()}
            for way in ("plain loop with DataLoader", "bare Trainer"):
                found[name]["fit"][f"of {way}"] = ratio(kept["fit"], kept[way])
    if options.json:
        print(json.dumps(found))
        return 0
    for name, ways in found.items():
        print(name)
        for way, figures in ways.items():
            print(line(f"  {way}", figures["us a step"], "us"))
        for peer in ("plain loop with DataLoader", "bare Trainer"):
            print(line(f"  fit / {peer}", ways["fit"][f"of {peer}"]))
    return 0


def _seconds(call: Any) -> float:
    return min(_once(call) for _ in range(5))


def _once(call: Any) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


if __name__ == "__main__":
    sys.exit(main())
