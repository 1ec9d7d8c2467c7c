"""Iterating over small samples: ArrayLoader, slicing tensors by hand, and torch's DataLoader.

`python benchmarks/loaders.py [--rounds 15] [--json]`: 6,400 samples of one value and its target, batches of 64,
shuffled.
"""

import argparse
import json
import sys

import torch
from paired import line, ratio, summary, take_turns
from torch.utils.data import DataLoader, TensorDataset

from unitrain.loaders import ArrayLoader, DatasetLoader

N, BATCH = 6400, 64


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    options = parser.parse_args()
    x, y = torch.randn(N, 1), torch.randn(N, 1)
    theirs = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True)
    ours = ArrayLoader((x, y), batch_size=BATCH, shuffle=True)
    sampled = DatasetLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True)

    def by_hand() -> None:
        order = torch.randperm(N)
        for first in range(0, N, BATCH):
            rows = order[first : first + BATCH]
            _ = x[rows], y[rows]

    times = take_turns(
        {
            "slicing by hand": by_hand,
            "unitrain's ArrayLoader": lambda: [None for _ in ours],
            "torch's DataLoader": lambda: [None for _ in theirs],
            "unitrain's DatasetLoader (seeded batches)": lambda: [None for _ in sampled],
        },
        rounds=options.rounds,
    )
    batches = N // BATCH
    found = {
        name: {
            "us a batch": summary(values, 1e6 / batches),
            "of slicing": ratio(values, times["slicing by hand"]),
        }
        for name, values in times.items()
    }
    if options.json:
        print(json.dumps(found))
        return 0
    for name, figures in found.items():
        print(
            line(name, figures["us a batch"], "us") + f"   {figures['of slicing']['median']:.2f} of slicing"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
