"""What one step costs more with the moving average: ours, Lightning's, torch's, and one pass over the weights.

`python benchmarks/ema_step.py [--rounds 30] [--json]`. The pass is an addition in place of two sets of
weights: it reads both and writes one, as an average must.
"""

import argparse
import json
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from paired import line, ratio, summary, take_turns
from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from unitrain.training.callbacks.ema import EMA


class Net(LightningModule):
    """A LightningModule around any layers."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


def models() -> dict[str, Callable[[], nn.Module]]:
    """A small MLP and a large conv net."""
    sizes = [(3, 256), *[(256, 512), (512, 512), (512, 512), (512, 256)]]
    return {
        "MLP, 9k parameters": lambda: nn.Sequential(
            nn.Linear(10, 88), nn.ReLU(), nn.Linear(88, 88), nn.ReLU(), nn.Linear(88, 1)
        ),
        "conv net, 8M parameters": lambda: nn.Sequential(
            *[layer for a, b in sizes for layer in (nn.Conv2d(a, b, 3), nn.BatchNorm2d(b), nn.ReLU())]
        ),
    }


def stepper(callback: Any, module: Net) -> Callable[[], None]:
    """A call that is one optimizer step to a callback."""
    trainer: Any = SimpleNamespace(global_step=0, current_epoch=0)
    callback.setup(trainer, module, "fit")
    if isinstance(callback, EMA):
        callback.on_fit_start(trainer, module)

    def step() -> None:
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, module, None, None, 0)

    return step


def measure(build: Callable[[], nn.Module], rounds: int, calls: int) -> dict[str, Any]:
    """Microseconds a step of each, and ratios to one pass."""
    modules = [Net(build()) for _ in range(3)]
    averaged = AveragedModel(modules[2], multi_avg_fn=get_ema_multi_avg_fn(0.998))
    one, other = ([p.detach().clone() for p in modules[0].parameters()] for _ in range(2))
    contenders = {
        "unitrain": stepper(EMA(0.998), modules[0]),
        "Lightning's EMAWeightAveraging": stepper(
            EMAWeightAveraging(decay=0.998, use_buffers=False), modules[1]
        ),
        "torch's multi_avg_fn": lambda: averaged.update_parameters(modules[2]),
        "one pass over the weights": lambda: torch._foreach_add_(one, other),
    }
    times = take_turns(contenders, rounds=rounds, calls=calls)
    return {
        name: {"us": summary(values, 1e6), "of one pass": ratio(values, times["one pass over the weights"])}
        for name, values in times.items()
    }


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    options = parser.parse_args()
    found = {
        name: measure(build, options.rounds, 200 if "9k" in name else 10) for name, build in models().items()
    }
    if options.json:
        print(json.dumps(found))
        return 0
    for name, rows in found.items():
        print(name)
        for contender, figures in rows.items():
            print(
                line(f"  {contender}", figures["us"], "us")
                + f"   {figures['of one pass']['median']:.2f} passes"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
