"""The points of all processes of a distributed training, brought together in the main one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch.distributed
from pytorch_lightning import Trainer

from unitrain.training.collecting import SAMPLE_COLUMN, Points


def gather_points(own: Points | None, trainer: Trainer) -> list[Points | None]:
    """Each process's points by rank in the main process, nothing in the others; all of them must call it."""
    main = trainer.is_global_zero
    shares: list[Any] = [None] * trainer.world_size if main else []
    torch.distributed.gather_object(own, shares if main else None)
    return shares


def merged_points(shares: Sequence[Points | None], samples: int | None) -> Points | None:
    """One set of points, in the order of the validation set; None where no process has any.

    Process r of n has the samples r, r + n, r + 2n, ..., as torch's DistributedSampler and unitrain's loaders
    deal them; what they add at the end to give each process as many is left out again.

    Args:
        shares: by rank; `indices` are places in the process's own share.
        samples: of the validation set; None: not known, and nothing is left out.
    """
    world = len(shares)
    known = [(rank, share) for rank, share in enumerate(shares) if share is not None]
    if not known:
        return None
    indices = np.concatenate([share.indices * world + rank for rank, share in known])
    order = np.argsort(indices)
    if samples is not None:
        order = order[indices[order] < samples]
    indices, parts = indices[order], [share for _, share in known]
    tensors = {
        name: np.concatenate([part.tensors[name] for part in parts])[order]
        for name, values in parts[0].tensors.items()
        if all(name in part.tensors and part.tensors[name].shape[1:] == values.shape[1:] for part in parts)
    }
    columns = [name for name in parts[0].labels if all(name in part.labels for part in parts)]
    labels = {}
    for name in columns:
        column = [value for part in parts for value in part.labels[name]]
        labels[name] = [column[place] for place in order.tolist()]
    pictures = [part.pictured for part in parts if part.pictured is not None]
    pictured = None
    if len(pictures) == len(parts) and len({picture.shape[1:] for picture in pictures}) == 1:
        pictured = np.concatenate(pictures)[order]
    return Points(indices, tensors, labels | {SAMPLE_COLUMN: indices.tolist()}, pictured)


def validation_samples(trainer: Trainer) -> int | None:
    """How many samples the first validation loader has over all processes; None where it does not tell."""
    loader: Any = trainer.val_dataloaders
    while isinstance(loader, dict | list | tuple) and loader:
        loader = next(iter(loader.values())) if isinstance(loader, dict) else loader[0]
    count = getattr(loader, "n_samples", None)
    if count is None:
        try:
            count = len(loader.dataset)
        except (AttributeError, TypeError):  # a stream has no length
            return None
    return int(count)
