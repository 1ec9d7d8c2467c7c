"""What a snapshot costs the training's thread, and how much of that each part is.

    OMP_NUM_THREADS=1 python benchmarks/embeddings_stall.py [--points 10000] [--validations 20] [--json]

A training like signals_clustering's: signals of 6 x 100, codes of 24 and reconstructions are shown, with one
label and drawn thumbnails. Every second validation of one training takes a snapshot, so that the stall is the
difference to the validations beside it. The parts are the times inside the callback's hooks; "the rest" is what
the validation itself then takes longer. The epochs after either kind tell what the writing thread takes from a
machine that has no core to spare. Medians in milliseconds, of the clock on the wall and of the processor time
of the training's thread, which other work on the machine does not lengthen (OMP_NUM_THREADS=1, or what torch's
own threads do is not in it); the first snapshot, which sets its memory aside, is told by itself.
"""

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import nn

from unitrain.loaders import ArrayLoader
from unitrain.module import Tensors, UnitrainModule
from unitrain.settings import Embeddings
from unitrain.training.callbacks.embeddings import EmbeddingSnapshots
from unitrain.training.console import Console

N_CHANNELS, N_STEPS, N_CLASSES, BATCH = 6, 100, 4, 256
Clocks = NDArray[np.float64]
Row = dict[str, Clocks]
CLOCKS = ("wall", "processor")
PARTS = ("copying batches", "handing over", "waiting")


class Autoencoder(UnitrainModule):
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
    """Notes how long each hook of a validation keeps the training's thread, and how long all else takes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.rows: list[Row] = []
        self._row: Row = {}
        self._inner_wait = self._background.wait
        self._background.wait = self._timed_wait  # type: ignore[method-assign]
        self._ended_s = _now()

    def _timed_wait(self) -> None:
        start_s = _now()
        self._inner_wait()
        self._add_time("waiting", start_s)

    def _add_time(self, part: str, start_s: Clocks) -> None:
        self._row[part] = self._row.get(part, np.zeros(2)) + _now() - start_s

    def on_validation_start(self, *arguments: Any) -> None:
        if self.rows:
            self.rows[-1]["epoch after"] = _now() - self._ended_s
        self._row = {}
        self._began_s = _now()
        super().on_validation_start(*arguments)

    def on_validation_batch_end(self, *arguments: Any, **named: Any) -> None:
        start_s = _now()
        super().on_validation_batch_end(*arguments, **named)
        self._add_time("copying batches", start_s)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        start_s = _now()
        super().on_validation_end(trainer, pl_module)
        self._ended_s = _now()
        waited_s = self._row.setdefault("waiting", np.zeros(2))
        self._row["handing over"] = self._ended_s - start_s - waited_s
        self._row["validation"] = self._ended_s - self._began_s
        self.rows.append(self._row)


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description="what a snapshot at a validation costs the training")
    parser.add_argument("--points", type=int, default=10_000, help="points of a snapshot")
    parser.add_argument("--validations", type=int, default=20, help="validations of the training")
    parser.add_argument("--batches", type=int, default=100, help="training batches between two validations")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    rows = _train(options)[:-1]  # the last one has no epoch after it
    without, (first, *with_snapshot) = rows[2::2], rows[1::2]
    plain, taken = _medians_ms(without), _medians_ms(with_snapshot)
    stall_ms = taken["validation"] - plain["validation"]
    inside_ms = sum((taken[name] for name in PARTS), np.zeros(2))
    figures = {
        "a validation with a snapshot": taken["validation"],
        "a validation without": plain["validation"],
        "the stall, their difference": stall_ms,
        **{f"  {name}": taken[name] for name in PARTS},
        "  the rest": stall_ms - inside_ms,
        "the first snapshot's hooks": 1e3 * sum((first[name] for name in PARTS), np.zeros(2)),
        "the epoch after a snapshot": taken["epoch after"],
        "the epoch after none": plain["epoch after"],
    }
    if options.json:
        as_json = {
            name.strip(): dict(zip(CLOCKS, value.tolist(), strict=True)) for name, value in figures.items()
        }
        print(
            json.dumps({"points": options.points, "snapshots": len(with_snapshot), "ms": as_json}, indent=2)
        )
        return
    print(f"{options.points} points x 3 tensors, {len(with_snapshot)} snapshots [ms]   wall  processor")
    for name, (wall_ms, processor_ms) in figures.items():
        print(f"{name:<42} {wall_ms:8.1f} {processor_ms:10.1f}")


def _now() -> Clocks:
    return np.array([time.perf_counter(), time.thread_time()])


def _medians_ms(rows: list[Row]) -> Row:
    return {name: 1e3 * np.median([row.get(name, np.zeros(2)) for row in rows], axis=0) for name in rows[0]}


def _train(options: argparse.Namespace) -> list[Row]:
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
        settings = Embeddings(every_n_validations=2, max_points=options.points)
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
    return timed.rows


if __name__ == "__main__":
    main()
