"""What a snapshot at every validation costs the training's thread, and how much of that each part is.

    python benchmarks/embeddings_stall.py [--points 10000] [--validations 8] [--json]

A training like signals_clustering's: signals of 6 x 100, codes of 24 and reconstructions are shown, with one
label and drawn thumbnails. The stall is the time inside the callback's hooks, which is all that it keeps the
training's thread from; the time of the validations with and without snapshots, in turns, shows what the
writing thread takes from a machine that has no core to spare. Medians over the validations, in milliseconds.
"""

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

from unitrain.loaders import ArrayLoader
from unitrain.module import ServableModule, Tensors
from unitrain.settings import Embeddings
from unitrain.training.console import Console
from unitrain.training.embeddings import EmbeddingSnapshots

N_CHANNELS, N_STEPS, N_CLASSES, BATCH = 6, 100, 4, 256


class Autoencoder(ServableModule):
    """As wide as the example's."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(N_CHANNELS * N_STEPS, 24))
        self.decoder = nn.Sequential(
            nn.Linear(24, N_CHANNELS * N_STEPS), nn.Unflatten(1, (N_CHANNELS, N_STEPS))
        )

    def forward(self, signals: torch.Tensor) -> Tensors:
        code = self.encoder(signals)
        return {"code": code, "reconstruction": self.decoder(code)}

    def loss(self, inputs: Tensors, outputs: Tensors, batch: Any) -> torch.Tensor:
        return nn.functional.mse_loss(outputs["reconstruction"], inputs["signals"])


class Timed(EmbeddingSnapshots):
    """Notes how long each hook of a validation keeps the training's thread."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.parts: dict[str, list[float]] = {"copying batches": [], "handing over": [], "waiting": []}
        self.validations: list[float] = []
        self._copying_s = self._began_s = 0.0
        self._inner_wait = self._background.wait
        self._background.wait = self._timed_wait  # type: ignore[method-assign]
        self._waited_s = 0.0

    def _timed_wait(self) -> None:
        start_s = time.perf_counter()
        self._inner_wait()
        self._waited_s += time.perf_counter() - start_s

    def on_validation_start(self, *arguments: Any) -> None:
        self._began_s, self._copying_s, self._waited_s = time.perf_counter(), 0.0, 0.0
        super().on_validation_start(*arguments)

    def on_validation_batch_end(self, *arguments: Any, **named: Any) -> None:
        start_s = time.perf_counter()
        super().on_validation_batch_end(*arguments, **named)
        self._copying_s += time.perf_counter() - start_s

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        start_s = time.perf_counter()
        super().on_validation_end(trainer, pl_module)
        if not trainer.sanity_checking:
            whole_s = time.perf_counter() - start_s
            self.parts["copying batches"].append(self._copying_s)
            self.parts["waiting"].append(self._waited_s)
            self.parts["handing over"].append(whole_s - self._waited_s)
            self.validations.append(time.perf_counter() - self._began_s)


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description="what a snapshot at every validation costs the training")
    parser.add_argument("--points", type=int, default=10_000, help="points of a snapshot")
    parser.add_argument("--validations", type=int, default=8, help="validations of a training")
    parser.add_argument("--batches", type=int, default=100, help="training batches between two validations")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with_s = _train(options, every=1)
    without_s = _train(options, every=10**9)
    parts_ms = {name: 1e3 * statistics.median(values) for name, values in with_s.parts.items()}
    sums = [sum(each) for each in zip(*with_s.parts.values(), strict=True)]
    result = {
        "points": options.points,
        "validations": len(sums),
        "stall_ms": 1e3 * statistics.median(sums),
        "stall_greatest_ms": 1e3 * max(sums),
        "parts_ms": parts_ms,
        "validation_with_ms": 1e3 * statistics.median(with_s.validations),
        "validation_without_ms": 1e3 * statistics.median(without_s.validations),
    }
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(
        f"{options.points} points x 3 tensors: the training's thread is kept for {result['stall_ms']:.1f} ms "
        f"(at most {result['stall_greatest_ms']:.1f}) of a validation"
    )
    for name, value in parts_ms.items():
        print(f"  {name:<16} {value:6.1f} ms")
    print(
        f"a validation takes {result['validation_with_ms']:.0f} ms with snapshots, "
        f"{result['validation_without_ms']:.0f} ms without"
    )


def _train(options: argparse.Namespace, every: int) -> Timed:
    rng = np.random.default_rng(0)
    draw = partial(rng.standard_normal, dtype=np.float32)
    train = {
        "signals": draw((BATCH * 4, N_CHANNELS, N_STEPS)),
        "label": rng.integers(0, N_CLASSES, BATCH * 4),
    }
    known = {
        "signals": draw((options.points, N_CHANNELS, N_STEPS)).cumsum(-1),
        "label": rng.integers(0, N_CLASSES, options.points),
    }
    with tempfile.TemporaryDirectory(prefix="stall-") as directory:
        settings = Embeddings(every_n_validations=every, max_points=options.points)
        timed = Timed(settings=settings, run_dir=Path(directory), ema=None, console=Console(quiet=True))
        trainer = pl.Trainer(
            max_epochs=options.validations,
            accelerator="cpu",
            callbacks=[timed],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        pl.seed_everything(1)
        loader = ArrayLoader(train, batch_size=BATCH, shuffle=True, repeats=max(1, options.batches // 4))
        trainer.fit(Autoencoder(), loader, ArrayLoader(known, batch_size=BATCH))
    return timed


if __name__ == "__main__":
    main()
