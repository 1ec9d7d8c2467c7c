"""Answers as lines of text: one JSON object, or one row of CSV, a sample."""

import csv
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from unitrain.client.arrays import Array
from unitrain.errors import ClientError, DataError
from unitrain.tensors import TensorSpec

_FLUSH_EVERY_S = 0.5


class _Lines:
    """What both kinds share: a file that is flushed now and then and closed once."""

    def __init__(
        self,
        file: IO[str],
        outputs: tuple[TensorSpec, ...],
        *,
        flush_every_s: float = _FLUSH_EVERY_S,
        done: int = 0,
    ) -> None:
        self.done = done
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

    def write(self, index: int, outputs: dict[str, Array], version: int, name: str | None = None) -> None:
        row = {spec.name: _plain(outputs[spec.name]) for spec in self._outputs}
        self._put(_head(index, name) | row | {"version": version})

    def write_error(self, index: int, error: ClientError, name: str | None = None) -> None:
        self._put(_head(index, name) | {"error": str(error), "version": 0})

    @staticmethod
    def whole_rows(path: Path, outputs: tuple[TensorSpec, ...]) -> int:
        """How many whole lines a file has; half a line at its end is taken off.

        Raises:
            DataError: they are not of these outputs.
        """
        count = end = 0
        with path.open("r+b") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                if count == 0:
                    _check_line(line, path, outputs)
                count, end = count + 1, end + len(line)
            file.truncate(end)
        return count

    def _put(self, row: dict[str, Any]) -> None:
        try:
            text = json.dumps(row, ensure_ascii=False, allow_nan=False)
        except ValueError:
            text = json.dumps(_finite(row), ensure_ascii=False)
        self._file.write(text + "\n")
        self._written()


class Csv(_Lines):
    """One row a sample: flattened columns `name` or `name[i]`, and `version`; empty cells where it failed."""

    def __init__(self, file: IO[str], outputs: tuple[TensorSpec, ...], *, done: int = 0) -> None:
        super().__init__(file, outputs, done=done)
        self._writer = csv.writer(file, lineterminator="\n")
        self._sizes: list[int] = []
        self._errors_first = 0
        if file.tell():  # resumed: the header is there
            with Path(file.name).open(encoding="utf-8", newline="") as before:
                self._sizes = _sizes_of(next(csv.reader(before)), outputs) or []

    def write(self, index: int, outputs: dict[str, Array], version: int, name: str | None = None) -> None:
        flat = [_flat_cells(outputs[spec.name]) for spec in self._outputs]
        sizes = list(map(len, flat))
        if not self._sizes:
            self._head(sizes)
        if sizes != self._sizes:
            raise DataError(
                f"sample {index}: outputs of {sizes} values after {self._sizes} fit no CSV; use .jsonl"
            )
        self._writer.writerow([*(cell for cells in flat for cell in cells), version])
        self._written()

    def write_error(self, index: int, error: ClientError, name: str | None = None) -> None:
        if self._sizes:
            self._writer.writerow([*[""] * sum(self._sizes), 0])
            self._written()
        else:
            self._errors_first += 1

    def close(self) -> None:
        if not self._sizes:  # nothing was ever answered: what the model says must do
            self._head([max(1, math.prod(spec.dims)) for spec in self._outputs])
        super().close()

    @staticmethod
    def whole_rows(path: Path, outputs: tuple[TensorSpec, ...]) -> int:
        """How many whole rows a file has after its header; what is beyond the last one is taken off.

        Raises:
            DataError: its columns are not those of these outputs.
        """
        count, end, position, whole = -1, 0, 0, True

        def lines(file: IO[bytes]) -> Iterator[str]:
            nonlocal position, whole
            for line in file:
                position += len(line)
                whole = line.endswith(b"\n")
                yield line.decode(errors="replace")

        with path.open("r+b") as file:
            width = 0
            try:
                for row in csv.reader(lines(file), strict=True):
                    if count < 0:
                        if not whole:
                            break
                        width = len(row)
                        if _sizes_of(row, outputs) is None:
                            names = ", ".join(spec.name for spec in outputs)
                            raise DataError(
                                f"{path}: --resume expected the columns of {names} and version, got {', '.join(row[:8])}"
                            )
                    if not whole or len(row) != width:
                        break
                    count, end = count + 1, position
            except csv.Error:  # an end in the middle of a quoted cell
                pass
            file.truncate(end)
        return max(0, count)

    def _head(self, sizes: list[int]) -> None:
        self._sizes = sizes
        self._writer.writerow(_columns(self._outputs, sizes))
        for _ in range(self._errors_first):
            self._writer.writerow([*[""] * sum(sizes), 0])


def _columns(outputs: tuple[TensorSpec, ...], sizes: list[int]) -> list[str]:
    names = [
        spec.name if size == 1 else f"{spec.name}[{i}]"
        for spec, size in zip(outputs, sizes, strict=True)
        for i in range(size)
    ]
    return [*names, "version"]


def _sizes_of(header: list[str], outputs: tuple[TensorSpec, ...]) -> list[int] | None:
    """How many values a row each output has in a file with this header; None where it is of other outputs."""
    sizes = [sum(c == spec.name or c.startswith(f"{spec.name}[") for c in header) for spec in outputs]
    return sizes if header == _columns(outputs, sizes) and all(sizes) else None


def _check_line(line: bytes, path: Path, outputs: tuple[TensorSpec, ...]) -> None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if isinstance(row, dict) and ("error" in row or all(spec.name in row for spec in outputs)):
        return
    names = ", ".join(spec.name for spec in outputs)
    raise DataError(
        f"{path}: --resume expected lines with {names}, got {line[:60].decode(errors='replace')!r}"
    )


def _head(index: int, name: str | None) -> dict[str, Any]:
    return {"index": index} if name is None else {"index": index, "source": name}


def _plain(array: Array) -> Any:
    value = np.asarray(array).tolist()
    return value if array.dtype != object else _texts(value)


def _texts(value: Any) -> Any:
    if isinstance(value, list):
        return [_texts(v) for v in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _flat_cells(array: Array) -> list[Any]:
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
