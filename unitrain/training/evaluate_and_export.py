"""Use a saved run from Python: evaluate it, export it, or load its trained model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule

from unitrain.repository.manifest import Manifest
from unitrain.runs import find_run
from unitrain.training import evaluation
from unitrain.training.checkpoint import CheckpointName, Kind, checkpoint_path, load_weights
from unitrain.training.console import Console, quiet_lightning
from unitrain.training.evaluation import Evaluation, Stage
from unitrain.training.export_checkpoint import export_run
from unitrain.training.parsing.settings_file import as_flags
from unitrain.training.restore import restore_run


def evaluate(
    run: str | Path,
    stage: Stage = "validate",
    overrides: Mapping[str, Any] | None = None,
    *,
    checkpoint: CheckpointName = "best",
    weights: Kind | None = None,
    experiments_dir: str | Path = "experiments",
    quiet: bool = False,
    trust: bool = False,
) -> Evaluation:
    """Validate or test a run's checkpoint, as `python -m unitrain validate` and `test` do.

    The metrics are equal to the bit to those that fit logged for the checkpoint.

    Example:
        >>> evaluate(run).metrics["val_loss"] == load_run(run).best["value"]
        True

    Args:
        run: run folder, name of a run or unique beginning of it, or `last`.
        stage: `validate` or `test`.
        overrides: changed settings by dotted name: `{"trainer.accelerator": "cpu"}`.
        checkpoint: `best` or `last`.
        weights: "ema" for the averaged weights, "raw" for the others; None: averaged if the run has them.
        experiments_dir: folder in which names are looked up.
        quiet: print no warnings about differences from fit.
        trust: import code from any project root that the run names.

    Raises:
        RunError: there is no such run or checkpoint, or it no longer fits the code.
        UsageError: there are no data for the stage, or the overrides are wrong.
    """
    return evaluation.evaluate(
        run,
        stage,
        checkpoint=checkpoint,
        weights=weights,
        overrides=as_flags(overrides or {}),
        experiments_dir=Path(experiments_dir),
        console=None if quiet else Console(),
        trust=trust,
    )


def export(
    run: str | Path,
    repository: str | Path | None = None,
    *,
    model: str | None = None,
    checkpoint: CheckpointName = "best",
    weights: Kind | None = None,
    experiments_dir: str | Path = "experiments",
    quiet: bool = False,
    trust: bool = False,
) -> Manifest:
    """Publish a run's checkpoint as a new version of a model, as `python -m unitrain export` does.

    Example:
        >>> manifest = export(run, "other_repo", model="curve")
        >>> manifest.version, manifest.weights
        (1, 'ema')

    Args:
        run: run folder, name of a run or unique beginning of it, or `last`.
        repository: folder of the model repository; None: the one in the run's settings.
        model: name of the served model; None: the one in the run's settings.
        checkpoint: `best` or `last`.
        weights: "ema" for the averaged weights, "raw" for the others; None: averaged if the run has them.
        experiments_dir: folder in which names are looked up.
        quiet: print no warnings about changes since the run.
        trust: import code from any project root that the run names.

    Returns:
        The manifest of the new version.

    Raises:
        UnitrainError: the run can't be restored, a gate refused the version, or the repository can't be written.
    """
    return export_run(
        find_run(str(run), Path(experiments_dir)),
        checkpoint=checkpoint,
        weights=weights,
        repository_dir=None if repository is None else Path(repository).absolute(),
        model=model,
        console=Console(quiet=quiet),
        trust=trust,
    )


def load_model(
    run: str | Path,
    weights: Kind | None = None,
    *,
    checkpoint: CheckpointName = "best",
    experiments_dir: str | Path = "experiments",
    trust: bool = False,
) -> LightningModule:
    """Load a run's trained module on the CPU, in evaluation mode.

    Example:
        >>> model = load_model(run, weights="ema")
        >>> model.training
        False

    Args:
        run: run folder, name of a run or unique beginning of it, or `last`.
        weights: "ema" for the averaged weights, "raw" for the others; None: averaged if the run has them.
        checkpoint: `best` or `last`.
        experiments_dir: folder in which names are looked up.
        trust: import code from any project root that the run names.

    Raises:
        RunError: there is no such run or checkpoint, it has no averaged weights, or it no longer fits the code.
        UsageError: the run's settings no longer fit the code, or its project root is not trusted.
    """
    with quiet_lightning():
        restored = restore_run(find_run(str(run), Path(experiments_dir)), trust=trust)
        load_weights(restored.module, checkpoint_path(restored.run, checkpoint), weights)
    return restored.module.eval()
