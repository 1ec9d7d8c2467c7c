"""Checkpoints of a run: written atomically, found, verified, read as plain data, and loaded into a module."""

import datetime as dt
import pathlib
import pickle
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import nn

from unitrain.atomic_files import replacing
from unitrain.errors import RunError, SettingsError, UsageError
from unitrain.runs import RunFolder
from unitrain.training.console import Console

Kind = Literal["ema", "raw"]
CheckpointName = Literal["best", "last"]

_PLAIN: list[Any] = [
    *(type(np.dtype(kind)) for kind in "?bhilqBHILQefdFDSU"),
    np.dtype,
    np.ndarray,
    np.float64(0).__reduce__()[0],  # the constructors of numpy's scalars and of its arrays
    np.empty(0).__reduce__()[0],
    pathlib.PosixPath,
    dt.timedelta,
]
"""Types that modules put into checkpoints beside tensors, and that torch does not know to be plain data."""
_REQUIRED_KEYS = ("state_dict", "global_step", "epoch", "loops")
"""Keys of every checkpoint that fit writes."""
_CREATED_LATER = ("_val_metrics", "_test_metrics")
"""Metrics that a UnitrainModule creates at their first use: a restored module has none yet."""


class DamagedCheckpointError(RunError):
    """A checkpoint file is truncated or its checksums are wrong.

    Attributes:
        fault: the damage, as the end of a sentence.
    """

    def __init__(self, path: Path, fault: str) -> None:
        super().__init__(f"{path} is damaged ({fault}); take the run's other checkpoint")
        self.fault = fault


@dataclass(frozen=True)
class LoadedWeights:
    """Origin of the weights that `load_weights` has loaded.

    Attributes:
        kind: "ema" or "raw".
        step: optimizer steps done.
        epoch: epoch of the training, counted from 0.
        content: the whole checkpoint.
    """

    kind: Kind
    step: int
    epoch: int
    content: dict[str, Any] = field(repr=False)


class DurableCheckpointIO(TorchCheckpointIO):
    """Write Lightning's checkpoint files beside their target, flush them to the disk, then rename them.

    Lightning writes its temporary file into the system's temporary folder and never flushes it. If that
    folder is on another filesystem, a killed process leaves half a checkpoint.

    Args:
        console: prints a warning about a checkpoint that can't be loaded again.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._verified = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(target) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch wraps the disk's errors
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise RunError(f"{target} can't be written: {reason}; the earlier one is intact") from error
        if not self._verified:
            self._verified = True
            self._verify_loadable(target)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint as plain data, without running code from it."""
        return load_plain(path, map_location or "cpu")

    def _verify_loadable(self, path: Path) -> None:
        try:
            load_plain(path, mmap=True)
        except pickle.UnpicklingError as error:
            found = re.search(r"GLOBAL (\S+)", str(error))
            self._console.warn(
                f"{path} holds {found[1] if found else 'an object'}, which is no plain data: the run can't be resumed from "
                "it; let on_save_checkpoint and save_hyperparameters keep numbers, texts and tensors only"
            )


def load_plain(path: Path | str, map_location: Any = "cpu", *, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint as plain data.

    Raises:
        UnpicklingError: the file holds something that could run code.
    """
    with torch.serialization.safe_globals(_PLAIN):
        content: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    return content


def existing_checkpoint(run_dir: Path, *names: CheckpointName) -> Path | None:
    """Return the path of the first of these checkpoints that a run has; None if it has none of them."""
    paths = (run_dir / "checkpoints" / f"{name}.ckpt" for name in names)
    return next((path for path in paths if path.is_file()), None)


def checkpoint_path(run: RunFolder, name: CheckpointName) -> Path:
    """Return the path of a run's best or last checkpoint.

    Raises:
        RunError: the run has no checkpoint of that name; the message lists the existing ones.
    """
    path = existing_checkpoint(run.path, name)
    if path is None:
        others = sorted(p.stem for p in run.checkpoints_dir.glob("*.ckpt"))
        hint = f"it has {', '.join(others)}" if others else "it has none at all"
        raise RunError(f"{run.path} has no checkpoint `{name}`; {hint}")
    return path


def checkpoint_fault(path: Path) -> str | None:
    """Return the damage of a checkpoint file, None if the file is valid.

    torch writes zip files, which have a checksum (CRC-32) of every tensor. Each one is verified.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        return str(error) or type(error).__name__
    return None if broken is None else f"the checksum of {broken} is wrong"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Verify a checkpoint's checksums and read it to the CPU as plain data.

    Raises:
        DamagedCheckpointError: the file is truncated or a checksum is wrong.
        RunError: the file holds something else than plain data, or is no checkpoint of fit.
    """
    fault = checkpoint_fault(path)
    if fault is not None:
        raise DamagedCheckpointError(path, fault)
    try:
        content = load_plain(path)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RunError(f"{path} can't be read as a checkpoint: {reason}") from error
    missing = [key for key in _REQUIRED_KEYS if not isinstance(content, dict) or key not in content]
    if missing:
        raise RunError(f"{path} is an incomplete checkpoint: it has no {', '.join(missing)}")
    return content


def load_weights(module: LightningModule, checkpoint: Path, kind: Kind | None = None) -> LoadedWeights:
    """Load a checkpoint's weights into a module.

    Args:
        module: module of the checkpoint's run.
        checkpoint: checkpoint file.
        kind: "ema" for the averaged weights, "raw" for the others; None for the averaged ones if the run has them.

    Raises:
        UsageError: there is no such kind.
        RunError: the file is damaged, has no averaged weights, or does not fit the module.
    """
    if kind not in (None, "ema", "raw"):
        raise UsageError(f"weights: expected `ema` or `raw`, got {kind!r}")
    content = read_checkpoint(checkpoint)
    chosen: Kind = kind or ("ema" if _has_average(content) else "raw")
    if chosen == "ema" and not _has_average(content):
        raise RunError(f"{checkpoint} holds no averaged weights, since the run kept none; take --weights raw")
    if is_overridden("configure_model", module):
        module.configure_model()
    module.on_load_checkpoint(content)
    _load_strictly(module, _weights_of(content, chosen), checkpoint)
    return LoadedWeights(chosen, int(content["global_step"]), int(content["epoch"]), content)


def load_matching_weights(module: nn.Module, checkpoint: Path, kind: str, console: Console) -> None:
    """Load the weights of another run's checkpoint as far as their names and shapes match (`--init-from`).

    Args:
        module: module of the new run.
        checkpoint: checkpoint file of the other run.
        kind: "ema" or "raw".
        console: prints each name that is missing, unknown, or of another shape.

    Raises:
        RunError: the file is damaged.
        SettingsError: no name and shape matches.
    """
    weights = _weights_of(read_checkpoint(checkpoint), kind)
    own = module.state_dict()
    matching = {name: w for name, w in weights.items() if name in own and own[name].shape == w.shape}
    if not matching:
        raise SettingsError(
            f"--init-from: none of the weights of {checkpoint} fits this model; it is another one"
        )
    module.load_state_dict(matching, strict=False)
    for what, names in (
        ("stay as they were initialised", own.keys() - matching.keys()),
        ("are not in this model, or of another shape", weights.keys() - matching.keys()),
    ):
        if names:
            console.warn(f"--init-from: {', '.join(sorted(names))} {what}")
    console.say(f"begins with {len(matching)} of {len(own)} weights ({kind}) of {checkpoint}")


def _has_average(content: dict[str, Any]) -> bool:
    """Return True if `state_dict` holds averaged weights; the raw ones are then in `current_model_state`."""
    return "current_model_state" in content


def _weights_of(content: dict[str, Any], kind: str) -> dict[str, Any]:
    weights: dict[str, Any] = content["state_dict"]
    if kind == "raw":
        weights = content.get("current_model_state", weights)
    return weights


def _load_strictly(module: LightningModule, weights: dict[str, Any], path: Path) -> None:
    try:
        missing, unexpected = module.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # another shape
        reason = " ".join(str(error).split()).partition(": ")[2] or str(error)
        raise RunError(
            f"{path} does not fit {type(module).__name__}: {reason}; has its code changed since?"
        ) from error
    unknown = [name for name in unexpected if not name.startswith(_CREATED_LATER)]
    if module.strict_loading and (missing or unknown):
        what = [f"it lacks {', '.join(missing[:5])}"] if missing else []
        what += [f"it has {', '.join(unknown[:5])} too many"] if unknown else []
        raise RunError(
            f"{path} does not fit {type(module).__name__}: {' and '.join(what)}; has its code changed since?"
        )
