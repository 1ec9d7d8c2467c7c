"""Samples cut out of a long signal by a window that slides over it."""

from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unitrain.client.input_validation import Array
from unitrain.client.io.numpy_files import load_npy
from unitrain.client.io.sources import Note, Samples, Windows, is_folder, open_file, steps_model
from unitrain.client.metadata import ModelInfo
from unitrain.errors import DataError, UsageError
from unitrain.signature import TensorSpec


def open_windows(source: str, model: ModelInfo, windows: Windows, note: Note) -> Samples:
    """Windows of a signal, as the model's only input has its axes: [steps], [steps, channels] or [channels, steps].

    A `.npy` file holds the signal with steps first or channels first, whichever fits; `.npz`, `.csv`,
    `.jsonl` and standard input hold one step a row, `name[i]` being channel i. A step that can't be read
    is the error of each window that it lies in.

    Raises:
        UsageError: the model has several inputs, or its input is no such window.
        DataError: the signal can't be read, or is of other channels.
    """
    if is_folder(source):
        raise UsageError(f"--window-steps: {source} is no one signal; name a file or `-`")
    spec, axis, channels = _window_axes(model, windows)
    if Path(source).suffix == ".npy":
        signal = _steps_first(load_npy(Path(source)), channels, source)
        count = max(0, (len(signal) - windows.steps) // windows.hop + 1)
        if not count:
            raise DataError(f"{source}: a signal of {len(signal)} steps has no window of {windows.steps}")
        starts = range(0, count * windows.hop, windows.hop)
        return Samples(
            ({spec.name: _arranged(signal[at : at + windows.steps], spec, axis)} for at in starts), count
        )
    steps = open_file(source, steps_model(model, channels), note)
    total = None if steps.total is None else max(0, (steps.total - windows.steps) // windows.hop + 1)
    return Samples(_sliding(_rows(steps.rows, spec, channels), spec, axis, windows), total)


def _window_axes(model: ModelInfo, windows: Windows) -> tuple[TensorSpec, int, int]:
    """The input, which of its axes are the steps, and how many channels there are."""
    if len(model.inputs) != 1 or not model.signature.batched:
        raise UsageError(f"--window-steps: model {model.name} must have one input with a batch axis")
    spec = model.inputs[0]
    dims = spec.dims
    fitting = [axis for axis, length in enumerate(dims) if length == windows.steps]
    fitting += [axis for axis, length in enumerate(dims) if length == -1]
    if len(dims) not in (1, 2) or not fitting:
        raise UsageError(
            f"--window-steps: expected an input of {windows.steps} steps and at most one axis of channels, got {spec}"
        )
    axis = fitting[0]
    channels = 1 if len(dims) == 1 else dims[1 - axis]
    if channels < 1:
        raise UsageError(f"--window-steps: input {spec} leaves its channels open")
    return spec, axis, channels


def _steps_first(signal: Array, channels: int, where: str) -> Array:
    if signal.ndim == 1 and channels == 1:
        return signal[:, None]
    if signal.ndim == 2:  # noqa: PLR2004 - steps and channels
        if signal.shape[1] == channels:
            return signal
        if signal.shape[0] == channels:
            return signal.T
    raise DataError(
        f"{where}: expected a signal of the shape [steps, {channels}] or [{channels}, steps], got {list(signal.shape)}"
    )


def _arranged(window: Array, spec: TensorSpec, axis: int) -> Array:
    """A window [steps, channels] with its axes as the input has them."""
    if len(spec.dims) == 1:
        return window[:, 0]
    return window if axis == 0 else window.T


def _rows(
    steps: Iterator[Mapping[str, Any] | DataError], spec: TensorSpec, channels: int
) -> Iterator[Array | DataError]:
    for number, step in enumerate(steps):
        if isinstance(step, DataError):
            yield step
            continue
        row = np.ravel(step[spec.name])
        if row.size == channels:
            yield row
        else:
            yield DataError(f"step {number}: expected {channels} channels of {spec.name}, got {row.size}")


def _sliding(
    steps: Iterator[Array | DataError], spec: TensorSpec, axis: int, windows: Windows
) -> Iterator[Mapping[str, Any] | DataError]:
    held: deque[Array | DataError] = deque(maxlen=windows.steps)
    until_next = windows.steps
    for step in steps:
        held.append(step)
        until_next -= 1
        if until_next:
            continue
        until_next = windows.hop
        whole = [row for row in held if not isinstance(row, DataError)]
        if len(whole) == windows.steps:
            yield {spec.name: _arranged(np.stack(whole), spec, axis)}
        else:
            yield next(row for row in held if isinstance(row, DataError))
