"""Checkpoints that are whole or not there, and that load as plain data only."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from unitrain.durable import replacing
from unitrain.errors import RunError


class DurableCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written beside their target, flushed to the disk, then renamed.

    Lightning's own way makes its temporary file in the system's folder for those and never flushes: where
    that lies on another filesystem, a killed process leaves half a checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(target) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch wraps what the disk says
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise RunError(f"{target} can't be written: {reason}; the earlier one is whole") from error

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """The checkpoint's content; never anything that could run code."""
        loaded: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        return loaded
