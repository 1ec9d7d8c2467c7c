"""Reasons why a resumed run may end differently from an uninterrupted one."""

from collections.abc import Iterable
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import StochasticWeightAveraging, Timer
from pytorch_lightning.loops.fetchers import _DataLoaderIterDataFetcher

from unitrain.loaders import ResumableLoader
from unitrain.training.resuming.replayed_loaders import ReplayedIterable, ReplayedLoader

_INEXACT_CALLBACKS: dict[type, str] = {
    Timer: "trainer.max_time counts seconds, so the run ends at another step",
    StochasticWeightAveraging: "StochasticWeightAveraging keeps state that no checkpoint holds",
}
"""Lightning's callbacks that can't be resumed exactly, with the reason."""


def inexact_reasons(
    trainer: Trainer, pl_module: LightningModule, *, seeded: bool, checkpoints: bool
) -> list[str]:
    """Return the reasons why a resumed run may end differently on the same machine; none if it is exact.

    Args:
        trainer: trainer of the run, with its loaders set up.
        pl_module: module of the run.
        seeded: `step_seeding` is on: the random numbers of each step are a function of the seed.
        checkpoints: `last.ckpt` is written.
    """
    reasons = []
    if not checkpoints:
        reasons.append("trainer.enable_checkpointing is false: nothing is written to resume from")
    if not seeded:
        reasons.append("step_seeding is false: random numbers differ after a resume")
    reasons += _reasons_of_loaders("training", _flat(trainer.fit_loop._combined_loader))  # noqa: SLF001 - it has no public name
    reasons += _reasons_of_loaders("validation", _flat(trainer.fit_loop.epoch_loop.val_loop._combined_loader))  # noqa: SLF001
    if isinstance(trainer.fit_loop._data_fetcher, _DataLoaderIterDataFetcher):  # noqa: SLF001
        reasons.append(
            "training_step takes dataloader_iter: the batches that it fetches ahead are not counted"
        )
    if getattr(trainer, "_val_check_time_interval", None) is not None:
        reasons.append("trainer.val_check_interval counts seconds: validations come at other steps")
    if getattr(trainer, "reload_dataloaders_every_n_epochs", 0) > 1:
        reasons.append(
            "trainer.reload_dataloaders_every_n_epochs is above 1: a loader that depends on the epoch in which it was "
            "made is made in another one"
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        reasons += [reason for kind, reason in _INEXACT_CALLBACKS.items() if isinstance(callback, kind)]
    if pl_module.device.type != "cpu" and not torch.are_deterministic_algorithms_enabled():
        reasons.append(
            f"operations on {pl_module.device.type} may be nondeterministic: set trainer.deterministic: true"
        )
    return reasons


def _reasons_of_loaders(stage: str, loaders: Iterable[Any]) -> list[str]:
    reasons = []
    for loader in loaders:
        if isinstance(loader, ReplayedIterable):
            reasons.append(
                f"the {stage} loader is a {loader.kind}, no plain DataLoader: exact only if each iteration of it depends on "
                "the epoch and on seeded random generators alone"
            )
        elif not isinstance(loader, ReplayedLoader | ResumableLoader):
            reasons.append(
                f"the {stage} loader {type(loader).__name__} restores its position by its own state"
            )
    return reasons


def _flat(combined: Any) -> list[Any]:
    """Return the loaders of Lightning's combined loader."""
    return [] if combined is None else list(combined.flattened)
