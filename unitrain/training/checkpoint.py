"""Checkpoints that are whole or not there, and that load as plain data only."""

import datetime as dt
import pathlib
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from unitrain.atomic_files import replacing
from unitrain.errors import RunError
from unitrain.training.console import Console

_PLAIN: list[Any] = [
    *(type(np.dtype(kind)) for kind in "?bhilqBHILQefdFDSU"),
    np.dtype,
    np.ndarray,
    np.float64(0).__reduce__()[0],  # what makes numpy's scalars, and its arrays
    np.empty(0).__reduce__()[0],
    pathlib.PosixPath,
    dt.timedelta,
]
"""What modules put into checkpoints beside tensors, and torch does not know to be plain data."""


def load_plain(path: Path | str, map_location: Any = "cpu", *, mmap: bool = False) -> dict[str, Any]:
    """A checkpoint's content; never anything that could run code, which is an error."""
    with torch.serialization.safe_globals(_PLAIN):
        content: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    return content


class DurableCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written beside their target, flushed to the disk, then renamed.

    Lightning's own way makes its temporary file in the system's folder for those and never flushes: where
    that lies on another filesystem, a killed process leaves half a checkpoint.

    Args:
        console: told of a checkpoint that could not be loaded again.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._tried = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(target) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch wraps what the disk says
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise RunError(f"{target} can't be written: {reason}; the earlier one is whole") from error
        if not self._tried:
            self._tried = True
            self._try_to_load(target)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """The checkpoint's content; never anything that could run code."""
        return load_plain(path, map_location or "cpu")

    def _try_to_load(self, path: Path) -> None:
        try:
            load_plain(path, mmap=True)
        except pickle.UnpicklingError as error:
            found = re.search(r"GLOBAL (\S+)", str(error))
            self._console.warn(
                f"{path} holds {found[1] if found else 'an object'}, which is no plain data: nothing can go on from it; "
                "let on_save_checkpoint and save_hyperparameters keep numbers, texts and tensors only"
            )
