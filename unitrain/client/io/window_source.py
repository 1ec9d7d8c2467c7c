"""Samples cut out of a long signal by a sliding window."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from unitrain.client.input_validation import Array
from unitrain.client.io.numpy_files import load_npy
from unitrain.client.io.samples import SampleOrError, Samples, Windows
from unitrain.client.metadata import ModelInfo
from unitrain.errors import DataError, UsageError
from unitrain.signature import TensorSpec


def open_windows(
    source: str, model: ModelInfo, windows: Windows, open_rows: Callable[[ModelInfo], Samples]
) -> Samples:
    """Cut windows out of a signal: [steps], [steps, channels] or [channels, steps], as the model's input has them.

    A `.npy` file has the signal's steps or its channels first. Other sources have one step a row, `name[i]`
    being channel i. A step that can't be read is the error of each window that contains it.

    Args:
        source: file with one signal, or `-`.
        model: model with one input, which takes a window.
        windows: size and hop of the window.
        open_rows: opens the source's rows, for a model that takes one step at a time.

    Raises:
        UsageError: the model has several inputs, or its input is no such window.
        DataError: the signal can't be read, or has another number of channels.
    """
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
    steps = open_rows(_steps_model(model, channels))
    total = None if steps.total is None else max(0, (steps.total - windows.steps) // windows.hop + 1)
    return Samples(_sliding(_step_rows(steps.rows, spec, channels), spec, axis, windows), total)


def _steps_model(model: ModelInfo, channels: int) -> ModelInfo:
    """Return the model as if it took one step of a signal, for readers that return rows."""
    spec = replace(model.inputs[0], dims=(channels,))
    signature = replace(model.signature, inputs=(spec,), batched=True)
    return replace(model, signature=signature)


def _window_axes(model: ModelInfo, windows: Windows) -> tuple[TensorSpec, int, int]:
    """Return the input, the index of its axis of steps, and its number of channels."""
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
    """Return the signal as [steps, channels]."""
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
    """Return a window [steps, channels] with its axes in the input's order."""
    if len(spec.dims) == 1:
        return window[:, 0]
    return window if axis == 0 else window.T


def _step_rows(
    steps: Iterator[SampleOrError], spec: TensorSpec, channels: int
) -> Iterator[Array | DataError]:
    """Yield each step as [channels], or its error."""
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
) -> Iterator[SampleOrError]:
    """Yield each window as a sample, or the first error among its steps."""
    recent: deque[Array | DataError] = deque(maxlen=windows.steps)
    until_next = windows.steps
    for step in steps:
        recent.append(step)
        until_next -= 1
        if until_next:
            continue
        until_next = windows.hop
        rows = [row for row in recent if not isinstance(row, DataError)]
        if len(rows) == windows.steps:
            yield {spec.name: _arranged(np.stack(rows), spec, axis)}
        else:
            yield next(row for row in recent if isinstance(row, DataError))
