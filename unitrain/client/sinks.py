"""Answers into files or standard output, one row a sample; a failed sample keeps its row, with version 0.

`.csv` and `.jsonl` are written as results come; `.npz` and `.npy` when all are there, whole or not at all.
"""

import csv
import json
import math
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from unitrain.client.arrays import Array
from unitrain.client.model import ModelInfo
from unitrain.durable import replacing
from unitrain.errors import ClientError, DataError, UsageError
from unitrain.tensors import TensorSpec

SUFFIXES = (".csv", ".npy", ".npz", ".jsonl")
PROJECTOR = "projector:"

_FLUSH_EVERY_S = 0.5


class Sink(Protocol):
    """Where answers go."""

    def write(self, index: int, outputs: dict[str, Array], version: int) -> None:
        """Take one sample's outputs."""

    def write_error(self, index: int, error: ClientError) -> None:
        """Take one sample's error."""

    def close(self) -> None:
        """Write what is left."""


def open_sink(target: str, model: ModelInfo, output_name: str | None) -> Sink:
    """The sink that `--output` names.

    Raises:
        UsageError: it names none, or `.npy` is to hold more than one output.
        DataError: it can't be written.
    """
    known = {spec.name: spec for spec in model.outputs}
    if output_name is not None and output_name not in known:
        raise UsageError(
            f"--output-name: model {model.name} has the outputs {', '.join(known)}, got `{output_name}`"
        )
    outputs = tuple(known.values()) if output_name is None else (known[output_name],)
    if target == "-":
        return JsonLines(sys.stdout, outputs, flush_every_s=0.0)
    if target.startswith(PROJECTOR):
        from unitrain.client.projecting import ProjectorSnapshot

        return ProjectorSnapshot(Path(target.removeprefix(PROJECTOR)), model, outputs)
    path = Path(target)
    if path.suffix not in SUFFIXES:
        raise UsageError(f"--output: expected {', '.join(SUFFIXES)}, {PROJECTOR}DIR or `-`, got `{target}`")
    if path.suffix == ".npy" and len(outputs) != 1:
        names = ", ".join(known)
        raise UsageError(
            f"--output: a .npy file holds one output of {names}; name it with --output-name, or use .npz"
        )
    try:
        if path.suffix in (".npy", ".npz"):
            with path.open("ab"):  # refused now, not when all the work is done
                pass
            if path.stat().st_size == 0:
                path.unlink()
            return Arrays(path, model, outputs)
        file = path.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise DataError(f"{path}: can't be written: {error.strerror}") from error
    return JsonLines(file, outputs) if path.suffix == ".jsonl" else Csv(file, outputs)


class _Lines:
    """What the two text sinks share: a file that is flushed now and then and closed once."""

    def __init__(
        self, file: IO[str], outputs: tuple[TensorSpec, ...], flush_every_s: float = _FLUSH_EVERY_S
    ) -> None:
        self._file = file
        self._outputs = outputs
        self._flush_every_s = flush_every_s
        self._flushed_s = time.monotonic()

    def close(self) -> None:
        self._file.flush()
        if self._file is not sys.stdout:
            self._file.close()

    def _written(self) -> None:
        now = time.monotonic()
        if now - self._flushed_s >= self._flush_every_s:
            self._file.flush()
            self._flushed_s = now


class JsonLines(_Lines):
    """One object a line: the outputs as nested lists, and `version`; or `error`. NaN and infinities are null."""

    def write(self, index: int, outputs: dict[str, Array], version: int) -> None:
        row = {spec.name: _plain(outputs[spec.name]) for spec in self._outputs}
        self._put({"index": index} | row | {"version": version})

    def write_error(self, index: int, error: ClientError) -> None:
        self._put({"index": index, "error": str(error), "version": 0})

    def _put(self, row: dict[str, Any]) -> None:
        try:
            text = json.dumps(row, ensure_ascii=False, allow_nan=False)
        except ValueError:
            text = json.dumps(_finite(row), ensure_ascii=False)
        self._file.write(text + "\n")
        self._written()


class Csv(_Lines):
    """One row a sample: flattened columns `name` or `name[i]`, and `version`; empty cells where it failed."""

    def __init__(self, file: IO[str], outputs: tuple[TensorSpec, ...]) -> None:
        super().__init__(file, outputs)
        self._writer = csv.writer(file, lineterminator="\n")
        self._sizes: list[int] = []
        self._errors_first = 0

    def write(self, index: int, outputs: dict[str, Array], version: int) -> None:
        flat = [_cells(outputs[spec.name]) for spec in self._outputs]
        sizes = list(map(len, flat))
        if not self._sizes:
            self._head(sizes)
        if sizes != self._sizes:
            raise DataError(
                f"sample {index}: outputs of {sizes} values after {self._sizes} fit no CSV; use .jsonl"
            )
        self._writer.writerow([*(cell for cells in flat for cell in cells), version])
        self._written()

    def write_error(self, index: int, error: ClientError) -> None:
        if self._sizes:
            self._writer.writerow([*[""] * sum(self._sizes), 0])
        else:
            self._errors_first += 1

    def close(self) -> None:
        if not self._sizes:  # nothing was ever answered: what the model says must do
            self._head([max(1, math.prod(spec.dims)) for spec in self._outputs])
        super().close()

    def _head(self, sizes: list[int]) -> None:
        self._sizes = sizes
        names = [
            spec.name if size == 1 else f"{spec.name}[{i}]"
            for spec, size in zip(self._outputs, sizes, strict=True)
            for i in range(size)
        ]
        self._writer.writerow([*names, "version"])
        for _ in range(self._errors_first):
            self._writer.writerow([*[""] * sum(sizes), 0])


class Arrays:
    """One array an output, rows first, and `version` (int64, a row each); a failed row is NaN, or 0."""

    def __init__(self, path: Path, model: ModelInfo, outputs: tuple[TensorSpec, ...]) -> None:
        self._path = path
        self._batched = model.signature.batched
        self._outputs = outputs
        self._columns = {spec.name: _Column(spec) for spec in outputs}
        self._versions = _Column(TensorSpec("version", "INT64", ()))

    def write(self, index: int, outputs: dict[str, Array], version: int) -> None:
        for name, column in self._columns.items():
            column.append(outputs[name], index)
        self._versions.append(np.int64(version), index)

    def write_error(self, index: int, error: ClientError) -> None:
        for column in self._columns.values():
            column.append(None, index)
        self._versions.append(None, index)

    def close(self) -> None:
        arrays = {name: column.array() for name, column in self._columns.items()}
        versions = self._versions.array()
        if not self._batched and len(versions) == 1:
            # One whole array went in, so one whole array comes out.
            arrays = {name: array[0] for name, array in arrays.items()}
        try:
            with ExitStack() as stack:
                file = stack.enter_context(replacing(self._path))
                if self._path.suffix == ".npy":
                    np.save(file, arrays[self._outputs[0].name], allow_pickle=False)
                else:
                    np.savez(file, allow_pickle=False, **arrays, version=versions)
        except OSError as error:
            raise DataError(f"{self._path}: can't be written: {error.strerror}") from error


class _Column:
    """An array that grows by rows, in one piece of memory."""

    def __init__(self, spec: TensorSpec) -> None:
        self._spec = spec
        self._rows: Array | None = None
        self._count = 0
        self._failed: list[int] = []

    def append(self, row: Any, index: int) -> None:
        """Add a row; None is one that failed."""
        if row is None:
            self._failed.append(self._count)
            self._count += 1
            return
        row = np.asarray(row)
        if self._rows is None:
            self._rows = np.zeros((max(64, 2 * self._count), *row.shape), dtype=row.dtype)
        if row.shape != self._rows.shape[1:]:
            raise DataError(
                f"sample {index}: output {self._spec.name} has the shape {list(row.shape)} after "
                f"{list(self._rows.shape[1:])}, which fits no array; use .jsonl"
            )
        if self._count >= len(self._rows):
            grown = np.zeros((2 * self._count, *row.shape), dtype=self._rows.dtype)
            grown[: len(self._rows)] = self._rows
            self._rows = grown
        self._rows[self._count] = row
        self._count += 1

    def array(self) -> Array:
        """All rows."""
        rows = self._rows
        if rows is None:
            shape = tuple(max(0, d) for d in self._spec.dims)
            rows = np.zeros((self._count, *shape), dtype=self._spec.numpy)
        if len(rows) < self._count:
            rows = np.concatenate([rows, np.zeros((self._count - len(rows), *rows.shape[1:]), rows.dtype)])
        rows = rows[: self._count]
        if rows.dtype.kind == "f":
            rows[self._failed] = np.nan
        if rows.dtype == object:
            rows[self._failed] = b""
            return rows.astype("S")
        return rows


def _plain(array: Array) -> Any:
    value = np.asarray(array).tolist()
    return value if array.dtype != object else _texts(value)


def _texts(value: Any) -> Any:
    if isinstance(value, list):
        return [_texts(v) for v in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _cells(array: Array) -> list[Any]:
    array = np.asarray(array)
    if array.dtype == object:
        return [_texts(v) for v in array.ravel().tolist()]
    if array.dtype.kind == "f":
        # numpy's own shortest text, which reads back to the same value of that dtype
        return [str(v) for v in array.ravel()]
    return array.ravel().tolist()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list) else value
