"""Samples from files, standard input, a version's golden samples, or chance, one row at a time.

What is wrong with a file as a whole is raised before anything is sent; what is wrong with one row takes
that row's place.
"""

import difflib
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from unitrain.client.arrays import Array, check_names, fit_dtype
from unitrain.client.model import ModelInfo
from unitrain.client.text import csv_samples, jsonl_samples
from unitrain.errors import DataError, UsageError
from unitrain.tensors import TensorSpec

SUFFIXES = (".csv", ".npy", ".npz", ".jsonl")

Note = Callable[[str], None]
"""Takes a sentence that the person should see but that is no error."""

_UNKNOWN_LENGTH = 16
"""Of a random sample's axes that the model leaves open."""


def check_source(source: str) -> None:
    """Refuse what no source is named by.

    Raises:
        UsageError: neither `-`, `golden`, `random` nor a known kind of file.
    """
    if source not in ("-", "golden", "random") and Path(source).suffix not in SUFFIXES:
        raise UsageError(
            f"--input: expected {', '.join(SUFFIXES)}, `-`, `golden` or `random`, got `{source}`"
        )


def open_samples(
    source: str, model: ModelInfo, count: int | None, note: Note
) -> Iterator[Mapping[str, Any] | DataError]:
    """Samples of a file, `-` or `random`.

    Args:
        source: see `check_source`; `golden` is opened by `golden_arrays`.
        model: that they are for.
        count: at most; -1: endless, a file starting again at its end; None: the file's (`random`: one).
        note: takes what is worth saying.

    Raises:
        DataError: the file is missing, unreadable, or does not fit the model as a whole.
    """
    if source == "random":
        samples: Iterator[Mapping[str, Any] | DataError] = _random(model)
        return itertools.islice(samples, 1 if count is None else count) if count != -1 else samples
    if source == "-":
        samples = _standard_input(model, note)
    elif count == -1:
        samples = _again_and_again(source, model, note)
    else:
        samples = _file(source, model, note)
    return samples if count in (None, -1) else itertools.islice(samples, count)


def rows_of(arrays: Mapping[str, Array], model: ModelInfo, where: str) -> Iterator[Mapping[str, Any]]:
    """Arrays with rows first, by input name, as samples.

    Raises:
        DataError: names, shapes, dtypes or numbers of rows that do not fit.
    """
    check_names(arrays, model.signature, where)
    if not model.signature.batched:
        return iter([dict(arrays)])
    for spec in model.inputs:
        _check_rows(arrays[spec.name], spec, where)
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {n}" for name, n in counts.items())
        raise DataError(f"{where}: the arrays must have as many rows each, got {told}")
    names = tuple(arrays)
    return (dict(zip(names, row, strict=True)) for row in zip(*arrays.values(), strict=True))


def golden_arrays(
    model: ModelInfo, repository: Path, version: int
) -> tuple[dict[str, Array], dict[str, Array]]:
    """A version's golden samples and their outputs, as they were published, rows first.

    Raises:
        DataError: the version has none, or they can't be read.
    """
    path = repository / model.name / str(version) / "golden.npz"
    arrays = _load_npz(path)

    def below(folder: str) -> dict[str, Array]:
        return {name.removeprefix(folder): a for name, a in arrays.items() if name.startswith(folder)}

    return below("inputs/"), below("outputs/")


def _check_rows(array: Array, spec: TensorSpec, where: str) -> None:
    shape = array.shape[1:] if array.ndim else ()
    scalar = spec.dims == (1,) and array.ndim == 1
    fits = array.ndim == len(spec.dims) + 1 and all(
        d in (-1, n) for d, n in zip(spec.dims, shape, strict=False)
    )
    if not fits and not scalar:
        dims = ", ".join("?" if d < 0 else str(d) for d in spec.dims)
        raise DataError(
            f"{where}: input {spec.name} must have the shape [rows, {dims}], got {list(array.shape)}"
        )
    # One row tells whether the kind of dtype can fit at all, before the first sample is sent.
    kinds = {"O": "OSU", "b": "b"}.get(spec.numpy.kind, "iuf")
    if array.dtype.kind not in kinds and len(array):
        fit_dtype(np.asarray(array[:1]), spec, where)


def _file(source: str, model: ModelInfo, note: Note) -> Iterator[Mapping[str, Any] | DataError]:
    path = Path(source)
    if path.suffix == ".npy":
        if len(model.inputs) != 1:
            names = ", ".join(spec.name for spec in model.inputs)
            raise DataError(
                f"{path}: a .npy file holds one array, but the model's inputs are {names}; use .npz"
            )
        return rows_of({model.inputs[0].name: _load_npy(path)}, model, source)
    if path.suffix == ".npz":
        return rows_of(_select(_load_npz(path), model, source, note), model, source)
    reader = csv_samples if path.suffix == ".csv" else jsonl_samples
    try:
        file = path.open(encoding="utf-8", newline="")
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error
    try:
        return _closing(file, reader(file, model, source, note))
    except DataError:
        file.close()
        raise


def _closing(file: IO[str], samples: Iterator[Any]) -> Iterator[Any]:
    """The samples, their file closed after the last, or when no more are wanted."""
    with file:
        yield from samples


def _again_and_again(source: str, model: ModelInfo, note: Note) -> Iterator[Mapping[str, Any] | DataError]:
    first = _file(source, model, note)

    def rounds() -> Iterator[Mapping[str, Any] | DataError]:
        samples = first
        while True:
            any_sample = False
            for sample in samples:
                any_sample = True
                yield sample
            if not any_sample:
                return
            samples = _file(source, model, lambda _: None)

    return rounds()


def _standard_input(model: ModelInfo, note: Note) -> Iterator[Mapping[str, Any] | DataError]:
    # A file object of its own: a thread that waits in sys.stdin would hinder the interpreter's end.
    file = os.fdopen(os.dup(sys.stdin.fileno()), encoding="utf-8", newline="")
    first = file.readline()
    reader = jsonl_samples if first.lstrip().startswith("{") else csv_samples
    return reader(itertools.chain([first] if first else [], file), model, "standard input", note)


def _random(model: ModelInfo) -> Iterator[Mapping[str, Any]]:
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


def _load_npy(path: Path) -> Array:
    try:
        with path.open("rb"):  # a missing file is told as such, whatever numpy makes of it
            pass
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from error
    except Exception as error:  # numpy raises many kinds for a malformed file
        raise DataError(f"{path}: is no readable .npy file: {' '.join(str(error).split())}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: is no .npy file but an archive; name it .npz")
    return array


def _load_npz(path: Path) -> dict[str, Array]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from error
    except Exception as error:  # numpy and zipfile raise many kinds for a malformed file
        raise DataError(f"{path}: is no readable .npz file: {' '.join(str(error).split())}") from error


def _select(arrays: dict[str, Array], model: ModelInfo, where: str, note: Note) -> dict[str, Array]:
    """The arrays of the model's inputs; the others are passed over, and said to be."""
    wanted = [spec.name for spec in model.inputs]
    missing = [name for name in wanted if name not in arrays]
    if missing:
        near = difflib.get_close_matches(missing[0], arrays, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise DataError(
            f"{where}: there is no array {missing[0]}; it holds {', '.join(arrays) or 'none'}, and the model's inputs "
            f"are {', '.join(map(str, model.inputs))}{hint}"
        )
    others = [name for name in arrays if name not in wanted]
    if others:
        note(f"{where}: passed over {', '.join(others)}")
    return {name: arrays[name] for name in wanted}
