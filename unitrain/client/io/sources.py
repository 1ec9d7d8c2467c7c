"""Sources of samples that `--input` names: files, folders, standard input, random noise.

Samples are read one row at a time, in constant memory. An error of a file as a whole is raised before
anything is sent. An error of one row takes that row's place.
"""

import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from unitrain.client.input_validation import Array
from unitrain.client.io.folders import folder_samples
from unitrain.client.io.numpy_files import npy_rows, npz_rows
from unitrain.client.io.samples import FILE_SUFFIXES, Note, SampleOrError, Samples, Windows
from unitrain.client.io.text_files import csv_samples, jsonl_samples
from unitrain.client.io.window_source import open_windows
from unitrain.client.metadata import ModelInfo
from unitrain.errors import DataError, UsageError
from unitrain.signature import TensorSpec

_RANDOM_AXIS_LENGTH = 16
"""Length of a random sample's axes that the model leaves open."""


def check_source(source: str) -> None:
    """Check that `--input` names a source.

    Raises:
        UsageError: it is neither `-`, `golden`, `random`, a folder, a pattern nor a known kind of file.
    """
    known = source in ("-", "golden", "random") or _is_folder(source)
    if not known and Path(source).suffix not in FILE_SUFFIXES:
        raise UsageError(
            f"--input: expected {', '.join(FILE_SUFFIXES)}, a folder, a pattern such as 'images/*.png', `-`, `golden` "
            f"or `random`, got `{source}`"
        )


def open_samples(
    source: str,
    model: ModelInfo,
    count: int | None,
    note: Note,
    *,
    windows: Windows | None = None,
) -> Samples:
    """Open the samples of a file, a folder, `-` or `random`.

    Args:
        source: name of the source, see `check_source`; `golden` is opened by `GoldenIO`.
        model: model that takes the samples.
        count: maximum number of samples. -1: endless, a file starting again at its end. None: all of a
            file, one of `random`.
        note: receives remarks for the user.
        windows: size of the windows to cut out of the source, which is a long signal then.

    Raises:
        UsageError: the model can't take samples of this source.
        DataError: the file is missing, unreadable, or does not fit the model as a whole.
    """
    if source == "random":
        samples = Samples(_random(model), None)
        count = 1 if count is None else count
    elif count == -1 and source != "-":
        samples = Samples(_endless(source, model, note, windows))
    else:
        samples = _open(source, model, note, windows)
    return samples.cut(0, None if count == -1 else count)


def _is_folder(source: str) -> bool:
    """Return True if it names a folder, or files by a pattern."""
    path = Path(source)
    return path.is_dir() or (any(sign in source for sign in "*?[") and not path.exists())


def _open(source: str, model: ModelInfo, note: Note, windows: Windows | None) -> Samples:
    if windows is not None:
        if _is_folder(source):
            raise UsageError(f"--window-steps: {source} is no one signal; name a file or `-`")
        return open_windows(source, model, windows, lambda steps: _open_file(source, steps, note))
    if _is_folder(source):
        return folder_samples(source, model, note)
    return _open_file(source, model, note)


def _open_file(source: str, model: ModelInfo, note: Note) -> Samples:
    """Open the samples of one file, or of standard input.

    Raises:
        DataError: it is missing, unreadable, or does not fit the model as a whole.
    """
    if source == "-":
        return Samples(_standard_input(model, note))
    path = Path(source)
    if path.suffix == ".npy":
        return npy_rows(path, model)
    if path.suffix == ".npz":
        return npz_rows(path, model, note)
    reader = csv_samples if path.suffix == ".csv" else jsonl_samples
    try:
        file = path.open(encoding="utf-8", newline="")
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error
    except ValueError as error:  # a NUL in its name
        raise DataError(f"{source!r}: can't be read: {error}") from error
    try:
        return Samples(_closing(file, reader(file, model, source, note)))
    except BaseException:
        file.close()
        raise


def _closing(file: IO[str], samples: Iterator[Any]) -> Iterator[Any]:
    """Yield the samples, and close their file after the last, or when no more are wanted."""
    with file:
        yield from samples


def _endless(source: str, model: ModelInfo, note: Note, windows: Windows | None) -> Iterator[SampleOrError]:
    """Yield a source's samples again and again; its errors as a whole are raised now."""
    first = _open(source, model, note, windows)

    def rounds() -> Iterator[SampleOrError]:
        samples = first
        while True:
            any_sample = False
            for sample in samples.rows:
                any_sample = True
                yield sample
            if not any_sample:
                return
            samples = _open(source, model, lambda _: None, windows)

    return rounds()


def _standard_input(model: ModelInfo, note: Note) -> Iterator[SampleOrError]:
    if sys.stdin is None or sys.stdin.closed:
        raise DataError("standard input: is closed, expected JSON lines or CSV")
    # A second file object: a thread that waits in sys.stdin would block the interpreter's exit.
    file = os.fdopen(os.dup(sys.stdin.fileno()), encoding="utf-8", newline="")
    try:
        first = file.readline()
    except UnicodeDecodeError as error:
        raise DataError(f"standard input: is not UTF-8: {error.reason}") from error
    reader = jsonl_samples if first.lstrip().startswith("{") else csv_samples
    return reader(itertools.chain([first] if first else [], file), model, "standard input", note)


def _random(model: ModelInfo) -> Iterator[SampleOrError]:
    """Yield noise of the model's shapes and dtypes, the same in each run."""
    generator = np.random.default_rng(0)

    def draw(spec: TensorSpec) -> Array:
        shape = tuple(_RANDOM_AXIS_LENGTH if d < 0 else d for d in spec.dims)
        if spec.dtype == "BYTES":
            return np.full(shape, b"text", dtype=object)
        if spec.numpy.kind == "f":
            return np.asarray(generator.standard_normal(shape)).astype(spec.numpy)
        return np.asarray(generator.integers(0, 2, shape)).astype(spec.numpy)

    while True:
        yield {spec.name: draw(spec) for spec in model.inputs}
