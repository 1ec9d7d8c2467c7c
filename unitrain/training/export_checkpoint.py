"""A version by hand: a run's checkpoint through the gates that a training's own versions pass."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule

from unitrain.errors import HookError, SettingsError
from unitrain.onnx_export.module_copy import FrozenTrainer
from unitrain.publish import Lineage, Publisher, Request
from unitrain.repository import Repository
from unitrain.repository.manifest import Manifest, Metric
from unitrain.runs import RunFolder
from unitrain.settings import Publish
from unitrain.training.callbacks.publishing import state_digest
from unitrain.training.console import Console, quiet_lightning
from unitrain.training.restore import (
    CheckpointName,
    Kind,
    LoadedWeights,
    Rebuilt,
    checkpoint_path,
    load_weights,
    rebuild,
)
from unitrain.training.resuming.resume_point import read_checkpoint
from unitrain.training.validation_batches import first_batch_of, sample_inputs


@quiet_lightning()
def export_run(
    run_dir: Path,
    *,
    checkpoint: CheckpointName = "best",
    weights: Kind | None = None,
    repository_dir: Path | None = None,
    model: str | None = None,
    console: Console,
    trust: bool = False,
) -> Manifest:
    """The manifest of the version that a run's checkpoint became.

    The run's own record stays as it is: another process may own it. The version's manifest names the run.

    Args:
        checkpoint: "best" or "last".
        weights: "ema" or "raw"; None: the average where the run kept one.
        repository_dir: None: the one that the run's settings name.
        model: the served model's name; None: as the run's settings have it.
        console: told of what changed since the run.
        trust: import code from any project root that the run names.

    Raises:
        UnitrainError: the run can't be rebuilt, a gate refused, or the repository did.
    """
    run = RunFolder.open(run_dir)
    path = checkpoint_path(run, checkpoint)
    rebuilt = rebuild(run_dir, trust=trust)
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
        # By hand is an order.
        settings=replace(settings, policy="every"),
        lineage=_lineage(rebuilt),
    )
    change = publisher.config_change
    if change.action == "keep":
        console.warn(f"config.pbtxt is kept as it was edited: {change}")
    try:
        metric = _metric(rebuilt, loaded, checkpoint)
        made = publisher.capture(
            rebuilt.module, kind=loaded.kind, step=loaded.step, epoch=loaded.epoch, metric=metric
        )
        _check_state(rebuilt.module, made, read_checkpoint(path), loaded)
        # The data that the record's metric was measured on.
        record = rebuilt.run.record()
        manifest = publisher.publish(
            replace(
                made,
                data_fingerprint=record.get("data_fingerprint"),
                no_fingerprint=record.get("no_fingerprint"),
            )
        )
    finally:
        publisher.close()
    _warn_if_worse(manifest, console)
    return manifest


def _check_state(
    module: LightningModule, made: Request, content: Mapping[str, Any], loaded: LoadedWeights
) -> None:
    """Compare the module's state outside its weights with that of the training, as far as forward reads it.

    Raises:
        HookError: they differ, so that the version would not answer as the model did that was measured.
    """
    callbacks = content.get("callbacks") or {}
    states = [state for key, state in callbacks.items() if key.startswith("Publishing")]
    captured = states[0].get("captured") if states else None
    if made.state is None or not captured or captured["state"] is None:
        return
    # At another step the epoch is another, too.
    comparable = captured["step"] == loaded.step or not made.state.trainer_reads
    if comparable and state_digest(made) != captured["state"]:
        read = [f"{part}.{name}".lstrip(".") for part, names in made.state.reads.items() for name in names]
        shown = ", ".join(sorted(set(read) - {"dynamic_axes"})[:5])
        raise HookError(
            f"{type(module).__name__}: the training changed state that is not in the checkpoint and that forward reads "
            f"(one of {shown}), so the version would answer otherwise than the trained model; keep such state in a "
            "buffer (register_buffer), or save and restore it in on_save_checkpoint and on_load_checkpoint"
        )


def _warn_if_worse(manifest: Manifest, console: Console) -> None:
    compared = manifest.comparison
    if compared and compared["outcome"] == "worse" and manifest.metric:
        console.warn(
            f"version {manifest.version} is worse than version {compared['version']} that it replaces: "
            f"{manifest.metric.name} {manifest.metric.value:.6g} against {compared['value']:.6g}; "
            f"`models rollback {manifest.model} {compared['version']}` publishes that one again"
        )


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
