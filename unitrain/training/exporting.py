"""A version by hand: a run's checkpoint through the gates that a training's own versions pass."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from unitrain.errors import SettingsError
from unitrain.export.module_copy import FrozenTrainer
from unitrain.manifest import Manifest, Metric
from unitrain.publish import Lineage, Publisher
from unitrain.repository import Repository
from unitrain.runs import RunFolder
from unitrain.settings import Publish
from unitrain.training.batches import fingerprint, first_batch_of, sample_inputs
from unitrain.training.console import Console
from unitrain.training.rebuild import (
    CheckpointName,
    Kind,
    LoadedWeights,
    Rebuilt,
    checkpoint_path,
    load_weights,
    rebuild,
)
from unitrain.training.silence import quiet_lightning


@quiet_lightning()
def export_run(
    run_dir: Path,
    *,
    checkpoint: CheckpointName = "best",
    weights: Kind | None = None,
    repository_dir: Path | None = None,
    model: str | None = None,
    console: Console,
) -> Manifest:
    """The manifest of the version that a run's checkpoint became.

    The run's own record stays as it is: another process may own it. The version's manifest names the run.

    Args:
        checkpoint: "best" or "last".
        weights: "ema" or "raw"; None: the average where the run kept one.
        repository_dir: None: the one that the run's settings name.
        model: the served model's name; None: as the run's settings have it.

    Raises:
        UnitrainError: the run can't be rebuilt, a gate refused, or the repository did.
    """
    run = RunFolder.open(run_dir)
    path = checkpoint_path(run, checkpoint)
    rebuilt = rebuild(run_dir)
    if rebuilt.changed_sources:
        console.warn(
            f"changed since the run: {', '.join(rebuilt.changed_sources)}; the graph is that of the code as it is now"
        )
    loaded = load_weights(rebuilt.module, path, weights)
    settings: Publish = rebuilt.cli.section("publish") or Publish()
    # As in the training, for a forward that reads `self.current_epoch`.
    vars(rebuilt.module)["_trainer"] = FrozenTrainer(current_epoch=loaded.epoch, global_step=loaded.step)
    batch = first_batch_of(rebuilt.module, rebuilt.datamodule)
    root = repository_dir or rebuilt.root / settings.repository
    publisher = Publisher.prepare(
        rebuilt.module,
        sample_inputs(rebuilt.module, batch),
        repository=Repository(root),
        model=model or settings.model or run.experiment,
        settings=settings,
        lineage=replace(_lineage(rebuilt), data_fingerprint=fingerprint(batch)),
    )
    change = publisher.config_change
    if change.action == "keep":
        console.warn(f"config.pbtxt is kept as it was edited: {change}")
    try:
        metric = _metric(rebuilt, loaded, checkpoint)
        return publisher.publish(
            publisher.capture(
                rebuilt.module, kind=loaded.kind, step=loaded.step, epoch=loaded.epoch, metric=metric
            )
        )
    finally:
        publisher.close()


def _lineage(rebuilt: Rebuilt) -> Lineage:
    run, record = rebuilt.run, rebuilt.run.record()
    return Lineage(
        run=f"{run.experiment}/{run.name}",
        run_dir=str(run.path),
        settings_sha256=hashlib.sha256(run.settings_path.read_bytes()).hexdigest(),
        sources_sha256=record.get("sources_sha256") if not rebuilt.changed_sources else None,
        git_commit=(record.get("git") or {}).get("commit"),
    )


def _metric(rebuilt: Rebuilt, loaded: LoadedWeights, checkpoint: CheckpointName) -> Metric | None:
    """The monitored metric of these very weights, where the run's record has it."""
    monitor = rebuilt.cli.section("monitor")
    if loaded.kind == "raw" and rebuilt.cli.section("ema"):
        return None  # what was validated is the average
    record: dict[str, Any] = rebuilt.run.record()
    best = record.get("best") or {}
    if monitor is None:
        raise SettingsError("monitor: the settings have no monitor section")
    if best.get("metric") == monitor.metric and best.get("step") == loaded.step:
        return Metric(monitor.metric, float(best["value"]), monitor.mode)
    value = (record.get("metrics") or {}).get(monitor.metric)
    if checkpoint == "last" and value is not None and record.get("step") == loaded.step:
        return Metric(monitor.metric, float(value), monitor.mode)
    return None
