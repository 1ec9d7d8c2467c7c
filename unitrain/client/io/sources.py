"""Samples from files, folders, standard input or chance, one row at a time, in memory that does not grow.

What is wrong with a file as a whole is raised before anything is sent; what is wrong with one row takes
that row's place.
"""

import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from unitrain.client.input_validation import Array
from unitrain.client.io.numpy_files import npy_rows, npz_rows
from unitrain.client.io.text_files import csv_samples, jsonl_samples
from unitrain.client.metadata import ModelInfo
from unitrain.errors import DataError, UsageError
from unitrain.signature import TensorSpec

SUFFIXES = (".csv", ".npy", ".npz", ".jsonl")

Note = Callable[[str], None]
"""Takes a sentence that the person should see but that is no error."""

Given = Mapping[str, Any] | DataError

_UNKNOWN_LENGTH = 16
"""Of a random sample's axes that the model leaves open."""


@dataclass(frozen=True)
class Samples:
    """What a source gives.

    Attributes:
        rows: one sample each, or what is wrong with it.
        total: how many there will be; None where nobody knows before the end.
    """

    rows: Iterator[Given]
    total: int | None = None

    def cut(self, skip: int, count: int | None) -> "Samples":
        """Without the first `skip`, and ending after the `count`-th of all."""
        total = self.total if count is None else count if self.total is None else min(count, self.total)
        rest = itertools.islice(self.rows, skip, None if count is None else max(skip, count))
        return Samples(rest, None if total is None else max(0, total - skip))


@dataclass(frozen=True)
class Windows:
    """A window that slides over a long signal: `steps` long, the next one beginning `hop` later."""

    steps: int
    hop: int


class Named(dict[str, Any]):
    """A sample that has a name: the file that it is from."""

    def __init__(self, values: Mapping[str, Any], name: str) -> None:
        super().__init__(values)
        self.name = name


def check_source(source: str) -> None:
    """Refuse what no source is named by.

    Raises:
        UsageError: neither `-`, `golden`, `random`, a folder, a pattern nor a known kind of file.
    """
    known = source in ("-", "golden", "random") or is_folder(source)
    if not known and Path(source).suffix not in SUFFIXES:
        raise UsageError(
            f"--input: expected {', '.join(SUFFIXES)}, a folder, a pattern such as 'images/*.png', `-`, `golden` or "
            f"`random`, got `{source}`"
        )


def open_samples(
    source: str,
    model: ModelInfo,
    count: int | None,
    note: Note,
    *,
    windows: Windows | None = None,
) -> Samples:
    """Samples of a file, a folder, `-` or `random`.

    Args:
        source: see `check_source`; `golden` is opened by `GoldenIO`.
        model: that they are for.
        count: at most; -1: endless, a file starting again at its end; None: the
            file's (`random`: one).
        note: takes what is worth saying.
        windows: cut them out of a long signal, which the source holds.

    Raises:
        UsageError: the model can't be asked so.
        DataError: the file is missing, unreadable, or does not fit the model as a whole.
    """
    if source == "random":
        samples = Samples(_random(model), None)
        count = 1 if count is None else count
    elif count == -1 and source != "-":
        samples = Samples(_again_and_again(source, model, note, windows))
    else:
        samples = _open(source, model, note, windows)
    return samples.cut(0, None if count == -1 else count)


def is_folder(source: str) -> bool:
    """Whether it names a folder, or files by a pattern."""
    path = Path(source)
    return path.is_dir() or (any(sign in source for sign in "*?[") and not path.exists())


def _open(source: str, model: ModelInfo, note: Note, windows: Windows | None) -> Samples:
    if windows is not None:
        from unitrain.client.io.sliding_windows import open_windows

        return open_windows(source, model, windows, note)
    if is_folder(source):
        from unitrain.client.io.folders import folder_samples

        rows, total = folder_samples(source, model, note)
        return Samples(rows, total)
    return open_file(source, model, note)


def open_file(source: str, model: ModelInfo, note: Note) -> Samples:
    """Samples of one file, or of standard input.

    Raises:
        DataError: it is missing, unreadable, or does not fit the model as a whole.
    """
    if source == "-":
        return Samples(_standard_input(model, note))
    path = Path(source)
    if path.suffix == ".npy":
        return Samples(*npy_rows(path, model))
    if path.suffix == ".npz":
        return Samples(*npz_rows(path, model, note))
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
    """The samples, their file closed after the last, or when no more are wanted."""
    with file:
        yield from samples


def _again_and_again(source: str, model: ModelInfo, note: Note, windows: Windows | None) -> Iterator[Given]:
    first = _open(source, model, note, windows)

    def rounds() -> Iterator[Given]:
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


def _standard_input(model: ModelInfo, note: Note) -> Iterator[Given]:
    if sys.stdin is None or sys.stdin.closed:
        raise DataError("standard input: is closed, expected JSON lines or CSV")
    # A file object of its own: a thread that waits in sys.stdin would hinder the interpreter's end.
    file = os.fdopen(os.dup(sys.stdin.fileno()), encoding="utf-8", newline="")
    try:
        first = file.readline()
    except UnicodeDecodeError as error:
        raise DataError(f"standard input: is not UTF-8: {error.reason}") from error
    reader = jsonl_samples if first.lstrip().startswith("{") else csv_samples
    return reader(itertools.chain([first] if first else [], file), model, "standard input", note)


def _random(model: ModelInfo) -> Iterator[Given]:
    generator = np.random.default_rng(0)

    def draw(spec: TensorSpec) -> Array:
        shape = tuple(_UNKNOWN_LENGTH if d < 0 else d for d in spec.dims)
        if spec.dtype == "BYTES":
            return np.full(shape, b"text", dtype=object)
        if spec.numpy.kind == "f":
            return np.asarray(generator.standard_normal(shape)).astype(spec.numpy)
        return np.asarray(generator.integers(0, 2, shape)).astype(spec.numpy)

    while True:
        yield {spec.name: draw(spec) for spec in model.inputs}


def steps_model(model: ModelInfo, channels: int) -> ModelInfo:
    """The model as if it took one step of a signal: what reads rows then reads steps."""
    spec = replace(model.inputs[0], dims=(channels,))
    signature = replace(model.signature, inputs=(spec,), batched=True)
    return replace(model, signature=signature)
