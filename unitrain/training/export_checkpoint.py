"""Export a run's checkpoint as a new version, through the gates that a training's versions pass."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule

from unitrain.errors import HookError, SettingsError
from unitrain.onnx_export.module_copy import FrozenTrainer
from unitrain.publish import Publisher, Request
from unitrain.repository import Repository
from unitrain.repository.manifest import Manifest, Metric
from unitrain.runs import RunFolder
from unitrain.settings import Publish
from unitrain.training.callbacks.publishing import state_digest
from unitrain.training.checkpoint import (
    CheckpointName,
    Kind,
    LoadedWeights,
    checkpoint_path,
    load_weights,
)
from unitrain.training.console import Console, quiet_lightning
from unitrain.training.provenance import lineage_of
from unitrain.training.restore import RestoredRun, restore_run
from unitrain.training.sample_batches import first_batch_of, sample_inputs


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
    """Export a run's checkpoint, and return the manifest of the new version.

    The run's record stays unchanged, since another process may hold its lock. The manifest names the run.

    Args:
        run_dir: the run's folder.
        checkpoint: "best" or "last".
        weights: "ema" for the averaged weights, "raw" for the others; None for the averaged ones if the run has them.
        repository_dir: model repository; None for the one in the run's settings.
        model: name of the served model; None for the one in the run's settings.
        console: prints warnings about changes since the run.
        trust: import code from any project root that the run names.

    Raises:
        UnitrainError: the run can't be restored, a gate refused the version, or it can't be written.
    """
    run = RunFolder.open(run_dir)
    path = checkpoint_path(run, checkpoint)
    restored = restore_run(run_dir, trust=trust)
    if restored.changed_sources:
        console.warn(
            f"changed since the run: {', '.join(restored.changed_sources)}; the graph is that of the current code"
        )
    loaded = load_weights(restored.module, path, weights)
    settings: Publish = restored.settings.section("publish") or Publish()
    # As in the training, for a forward that reads `self.current_epoch`.
    vars(restored.module)["_trainer"] = FrozenTrainer(current_epoch=loaded.epoch, global_step=loaded.step)
    batch = first_batch_of(restored.module, restored.datamodule)
    root = repository_dir or restored.root / settings.repository
    publisher = Publisher.prepare(
        restored.module,
        sample_inputs(restored.module, batch),
        repository=Repository(root),
        model=model if model is not None else settings.model or run.experiment,
        # An explicit export publishes even a worse version.
        settings=replace(settings, policy="every"),
        lineage=lineage_of(
            run, run.settings_path.read_bytes().decode(), sources_changed=bool(restored.changed_sources)
        ),
    )
    change = publisher.config_change
    if change.action == "keep":
        console.warn(f"config.pbtxt is kept as it was edited: {change}")
    try:
        metric = _metric(restored, loaded, checkpoint)
        made = publisher.capture(
            restored.module, kind=loaded.kind, step=loaded.step, epoch=loaded.epoch, metric=metric
        )
        _check_state(restored.module, made, loaded)
        # The data that the record's metric was measured on.
        record = restored.run.record()
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


def _check_state(module: LightningModule, made: Request, loaded: LoadedWeights) -> None:
    """Compare the module's state outside its weights with that of the training, as far as forward reads it.

    Raises:
        HookError: they differ, so that the version would not answer as the model did that was measured.
    """
    callbacks = loaded.content.get("callbacks") or {}
    states = [state for key, state in callbacks.items() if key.startswith("Publishing")]
    captured = states[0].get("captured") if states else None
    if made.state is None or not captured or captured["state"] is None:
        return
    # At another step the epoch differs as well.
    comparable = captured["step"] == loaded.step or not made.state.trainer_reads
    if comparable and state_digest(made) != captured["state"]:
        read = [f"{part}.{name}".lstrip(".") for part, names in made.state.reads.items() for name in names]
        shown = ", ".join(sorted(set(read) - {"dynamic_axes"})[:5])
        raise HookError(
            f"{type(module).__name__}: the training changed state that is not in the checkpoint and that forward reads "
            f"(one of {shown}), so the version would answer differently from the trained model; keep such state in a "
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


def _metric(restored: RestoredRun, loaded: LoadedWeights, checkpoint: CheckpointName) -> Metric | None:
    """Return the monitored metric of these weights; None if the run's record lacks it."""
    monitor = restored.settings.section("monitor")
    if loaded.kind == "raw" and restored.settings.section("ema"):
        return None  # the average was validated
    record: dict[str, Any] = restored.run.record()
    best = record.get("best") or {}
    if monitor is None:
        raise SettingsError("monitor: the settings have no monitor section")
    if best.get("metric") == monitor.metric and best.get("step") == loaded.step:
        return Metric(monitor.metric, float(best["value"]), monitor.mode)
    value = (record.get("metrics") or {}).get(monitor.metric)
    if checkpoint == "last" and value is not None and record.get("step") == loaded.step:
        return Metric(monitor.metric, float(value), monitor.mode)
    return None
