"""Collect the points of an embedding snapshot batch by batch, in memory limited by the settings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from unitrain.module import Tensors, UnitrainModule, batch_targets
from unitrain.projector import StableSample, group_numbers, thumbnail_index
from unitrain.settings import Embeddings, Reduction
from unitrain.training.sample_batches import observe

Array = np.ndarray[Any, np.dtype[Any]]
Indices = NDArray[np.int64]

SAMPLE_COLUMN = "sample"
"""Label column with each point's index in the validation set."""

_PICTURE = "\0picture"  # name of the thumbnails' buffer; no tensor has such a name


@dataclass(frozen=True)
class Points:
    """Points of some samples.

    Attributes:
        indices: index of each sample in the validation set, int64 [row], ascending.
        tensors: float32 [row, value] by name.
        labels: label columns by name, with one value per row.
        pictured: values that thumbnails are drawn from, [row, ...]; None without thumbnails.
    """

    indices: Indices
    tensors: dict[str, Array]
    labels: dict[str, list[Any]]
    pictured: Array | None


@dataclass(frozen=True)
class PointBuffers:
    """Points of one pass in memory, not yet in order.

    Attributes:
        indices: index of each sample in the validation set, ascending.
        slots: row of each sample in the buffers.
        buffers: values [row, value] by tensor name; there are more rows than points.
        columns: label columns by name, in the buffers' order.
        drawn: name of the tensor that thumbnails show, and the shape of a sample; None if they have a separate buffer.
    """

    indices: Indices
    slots: Indices
    buffers: dict[str, Array]
    columns: dict[str, list[Any]]
    drawn: tuple[str, tuple[int, ...]] | None
    _spare: list[dict[str, Array]]
    _thumbnail_px: int

    def points(self) -> Points:
        """Return the points in the validation's order.

        Rows that are not in order are copied, which takes too long for the training thread. Rows that are in
        order are valid until `release`.
        """
        rows = len(self.slots)
        in_order = bool((self.slots == np.arange(rows)).all())
        tensors = {name: b[:rows] if in_order else b[self.slots] for name, b in self.buffers.items()}
        pictured = tensors.pop(_PICTURE, None)
        if self.drawn is not None and self.drawn[0] in tensors:
            name, shape = self.drawn
            index = thumbnail_index(shape, self._thumbnail_px)
            pictured = tensors[name].reshape(rows, *shape)[(slice(None), *(index or ()))]
        slots = self.slots.tolist()
        labels = {name: [column[slot] for slot in slots] for name, column in self.columns.items()}
        return Points(self.indices, tensors, labels | {SAMPLE_COLUMN: self.indices.tolist()}, pictured)

    def release(self) -> None:
        """Return the memory for a later pass, which saves the page faults of new memory."""
        self._spare.append(self.buffers)


class PointCollector:
    """Collect the points of one validation after the other, always of the same samples.

    The first pass chooses the samples by reservoir sampling; later passes copy the chosen rows only. Memory is
    allocated for the kept rows, so it does not grow with the validation set. Two sets of buffers alternate: one
    is filled while the other is written.

    Args:
        settings: section `embeddings` of the settings: number, width and reduction of the points.
        log: function that prints one line for each omitted tensor.
    """

    def __init__(self, settings: Embeddings, log: Callable[[str], None]) -> None:
        self.settings = settings
        self._log = log
        self._sample: StableSample | None = None
        self._groups: dict[Any, int] = {}
        self._reported: set[str] = set()
        self._spare: list[dict[str, Array]] = []
        self._buffers: dict[str, Array] | None = None
        self.begin()

    def begin(self) -> None:
        """Discard the collected points, but keep the choice of samples."""
        if self._sample is not None:
            self._sample.begin()
        if self._buffers is not None:
            self._spare.append(self._buffers)
        self._buffers = None
        self._columns: dict[str, list[Any]] = {}
        self._drawn: tuple[str, tuple[int, ...]] | None = None

    def add(self, module: LightningModule, batch: Any, returned: Any = None) -> int:
        """Add the points of a batch, and return its number of samples.

        Args:
            module: module in evaluation mode.
            batch: batch on the module's device.
            returned: value that `validation_step` returned; see `observe`.
        """
        inputs, outputs = observe(module, batch, returned)
        if isinstance(module, UnitrainModule):
            values, columns = module.embeddings(inputs, outputs, batch), module.labels(batch)
        else:
            values, columns = {**inputs, **outputs}, batch_targets(module, batch)
        rows = len(next(iter(inputs.values())))
        tensors = self._reduced(values, rows)
        drawn = self._drawn_input(inputs)
        if (
            drawn is not None
            and drawn in tensors
            and values[drawn] is inputs[drawn]
            and self._is_unreduced(drawn)
        ):
            self._drawn = drawn, tuple(inputs[drawn].shape[1:])
        elif drawn is not None:
            tensors[_PICTURE] = _thumbnail_part(inputs[drawn], self.settings.thumbnail_px)
        if self._sample is None:
            self._sample = StableSample(self._limit(tensors, rows), seed=self.settings.seed)
        labels = _label_columns(columns, rows)
        settled = self._sample.indices is not None
        places, slots = self._sample.take(rows, None if settled else self._group(labels, rows))
        if self._buffers is None:
            height = self._sample.capacity if self._sample.indices is None else len(self._sample.indices)
            spare = self._spare.pop() if self._spare else {}
            self._buffers = {name: _buffer(t, height, spare.get(name)) for name, t in tensors.items()}
            self._columns = {name: [None] * height for name in labels}
        self._fill(tensors, labels, places, slots)
        return rows

    def take(self) -> PointBuffers | None:
        """Return the points since `begin` once; None if there are none."""
        buffers, columns = self._buffers, self._columns
        if self._sample is None or not buffers:
            return None
        slots = self._sample.end()
        self._buffers, self._columns = None, {}
        indices = self._sample.indices
        if indices is None or not len(slots) or not set(buffers) - {_PICTURE}:
            return None
        px = self.settings.thumbnail_px
        return PointBuffers(indices[: len(slots)], slots, buffers, columns, self._drawn, self._spare, px)

    def _fill(self, tensors: Tensors, labels: dict[str, list[Any]], places: Indices, slots: Indices) -> None:
        """Copy the chosen rows to their slots; a tensor that a later batch lacks is omitted from the snapshot."""
        buffers = self._buffers or {}
        for name, buffer in list(buffers.items()):
            tensor = tensors.get(name)
            if tensor is None or tensor.shape[1:] != buffer.shape[1:]:
                del buffers[name]
                if name != _PICTURE:
                    self._report_omitted(name, "its batches differ in shape; reduce it to a fixed one")
                continue
            _copy_rows(tensor, places, buffer, slots)
        chosen, theirs = places.tolist(), slots.tolist()
        for name, held in list(self._columns.items()):
            column = labels.get(name)
            if column is None:
                del self._columns[name]
                continue
            for place, slot in zip(chosen, theirs, strict=True):
                held[slot] = column[place]

    def _reduced(self, values: Mapping[str, Tensor], rows: int) -> Tensors:
        points: Tensors = {}
        for name, tensor in values.items():
            if tensor.dim() == 0 or len(tensor) != rows or tensor.is_complex():
                continue
            reduced = reduced_points(tensor, self.settings.reduce.get(name, "flatten"))
            width, widest = reduced.shape[1], self.settings.max_width
            if width > widest:
                self._report_omitted(
                    name,
                    f"{width} values a point are more than embeddings.max_width ({widest}); "
                    f"`embeddings.reduce: {{{name}: mean}}` shows it reduced",
                )
            elif width:
                points[name] = reduced
        unknown = set(self.settings.reduce) - set(values)
        for name in sorted(unknown):
            self._report_omitted(name, f"embeddings.reduce names it, but there are only {', '.join(values)}")
        return points

    def _drawn_input(self, inputs: Tensors) -> str | None:
        """Return the name of the first input that thumbnails can show; None if there is none."""
        if not self.settings.thumbnail_px:
            return None
        for name, tensor in inputs.items():
            shape = tuple(tensor.shape[1:])
            if not tensor.is_complex() and thumbnail_index(shape, self.settings.thumbnail_px) is not None:
                return name
        return None

    def _is_unreduced(self, name: str) -> bool:
        return self.settings.reduce.get(name, "flatten") == "flatten"

    def _limit(self, tensors: Tensors, rows: int) -> int:
        values = sum(t[:1].numel() for t in tensors.values()) if rows else 1
        # The buffers have more rows than the snapshot.
        return max(1, min(self.settings.max_points, self.settings.max_bytes * 8 // 9 // max(1, 4 * values)))

    def _group(self, labels: dict[str, list[Any]], rows: int) -> Indices | None:
        """Return the class number of each row, by its first label; None if that label is a measured quantity."""
        column = next(iter(labels.values()), None)
        if not column or any(isinstance(value, float) for value in column[:1]):
            return None
        return group_numbers([str(value) for value in column], self._groups)

    def _report_omitted(self, name: str, reason: str) -> None:
        if name not in self._reported:
            self._reported.add(name)
            self._log(f"embeddings: {name} is omitted: {reason}")


def reduced_points(tensor: Tensor, reduction: Reduction) -> Tensor:
    """Return a tensor [row, ...] as points [row, value].

    Args:
        tensor: values [row, ...] of any real dtype.
        reduction: `flatten` keeps all values. `mean` averages over space or time, which are all axes after
            [row, channel]. `centre` takes the value in their middle. `first` takes the first entry of the second
            axis: the first token of [row, token, value]. A tensor without such axes is flattened.
    """
    trailing = tensor.dim() > len(("row", "channel"))
    if reduction == "mean" and trailing:
        tensor = tensor.float().flatten(2).mean(2)
    elif reduction == "centre" and trailing:
        middle: Any = (slice(None), slice(None), *(n // 2 for n in tensor.shape[2:]))
        tensor = tensor[middle]
    elif reduction == "first" and trailing:
        tensor = tensor[:, 0]
    return tensor.reshape(len(tensor), -1)


def _thumbnail_part(tensor: Tensor, thumbnail_px: int) -> Tensor:
    index = thumbnail_index(tuple(tensor.shape[1:]), thumbnail_px) or ()
    parts = (p if isinstance(p, slice) else torch.from_numpy(p).to(tensor.device) for p in index)
    wanted: Any = (slice(None), *parts)
    return tensor[wanted]


def _buffer(tensor: Tensor, height: int, spare: Array | None) -> Array:
    """Return a buffer for `height` rows like the tensor's, in spare memory if that fits."""
    shape = (height, *tensor.shape[1:])
    dtype = np.uint8 if tensor.dtype == torch.uint8 else np.float32
    if spare is not None and spare.dtype == dtype and spare.shape[1:] == shape[1:] and len(spare) >= height:
        return spare
    return np.empty(shape, dtype)


def _copy_rows(tensor: Tensor, places: Indices, buffer: Array, slots: Indices) -> None:
    if not len(slots):
        return
    target = torch.from_numpy(buffer)
    first, rows = int(slots[0]), len(slots)
    if int(slots[-1]) - first + 1 == rows and bool((np.diff(slots) == 1).all()):
        picked = tensor if rows == len(tensor) else tensor[torch.from_numpy(places).to(tensor.device)]
        target[first : first + rows].copy_(picked)
    else:
        picked = tensor[torch.from_numpy(places).to(tensor.device)]
        target[torch.from_numpy(slots)] = picked.to("cpu", target.dtype)


def _label_columns(columns: Mapping[str, Any], rows: int) -> dict[str, list[Any]]:
    """Return the columns with one value per sample; a wide target is no label."""
    kept: dict[str, list[Any]] = {}
    for name, column in columns.items():
        if isinstance(column, Tensor | np.ndarray):
            size = column.numel() if isinstance(column, Tensor) else column.size
            if column.ndim > 0 and size == rows == len(column):
                kept[name] = column.reshape(-1).tolist()
        elif isinstance(column, list | tuple) and len(column) == rows:
            kept[name] = list(column)
    return kept


def gather_points(own: Points | None, trainer: Trainer) -> list[Points | None]:
    """Gather the points of all processes by rank in rank 0, and an empty list in the others. All ranks must call it."""
    main = trainer.is_global_zero
    shares: list[Any] = [None] * trainer.world_size if main else []
    torch.distributed.gather_object(own, shares if main else None)
    return shares


def merged_points(shares: Sequence[Points | None], samples: int | None) -> Points | None:
    """Merge the points of all processes in the order of the validation set; None if no process has points.

    Process r of n has the samples r, r + n, r + 2n, ..., as torch's DistributedSampler and unitrain's loaders
    distribute them. The samples that they repeat to make the shares equal are dropped.

    Args:
        shares: points by rank; their `indices` count within the process's share.
        samples: number of samples in the validation set; None if unknown, and nothing is dropped.
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
    """Return the number of samples of the first validation loader over all processes; None if unknown."""
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
