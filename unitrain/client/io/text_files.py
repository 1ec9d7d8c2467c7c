"""Samples from lines of text, and answers into them: CSV, and JSON lines.

CSV has one sample a row. A tensor of one value has the column `name`; the values of others have the columns
`name[0]`, `name[1]`, … in C order. JSON lines have one object a line, with nested lists by tensor name.
Answers also have `version`. A failed sample has version 0, and empty cells or `error`.
"""

import csv
import difflib
import json
import math
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from unitrain.client.input_validation import Array, fit_dtype
from unitrain.client.io.samples import Note, SampleOrError
from unitrain.client.metadata import ModelInfo
from unitrain.errors import ClientError, DataError
from unitrain.signature import TensorSpec

_COLUMN = re.compile(r"(?P<name>.+?)\[(?P<index>\d+)\]\Z")
_TRUTH = {"true": True, "false": False, "1": True, "0": False}
_FLUSH_EVERY_S = 0.5
_QUOTED_NAMES = 8
"""Maximum number of column names that a message quotes."""


# --- reading


def csv_samples(lines: Iterable[str], model: ModelInfo, where: str, note: Note) -> Iterator[SampleOrError]:
    """Parse a CSV file into samples, one a row.

    Args:
        lines: lines of the file, the header first.
        model: model that takes the samples.
        where: name of the file, for messages.
        note: receives the names of ignored columns.

    Raises:
        DataError: the header lacks columns of the model's inputs.
    """
    reader = csv.reader(lines, strict=True)
    try:
        header = next(reader, None)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{where}: is no CSV file in UTF-8: {error}") from error
    if header is None:
        raise DataError(f"{where}: is empty, expected a header line with {_expected_columns(model)}")
    header = [" ".join(name.removeprefix("\ufeff").split()) for name in header]
    columns = {spec.name: _column_places(spec, header, where, model) for spec in model.inputs}
    used = {place for places in columns.values() for place in places}
    others = [name for place, name in enumerate(header) if place not in used]
    if others:
        note(f"{where}: ignored the columns {_quoted(others)}")

    def samples() -> Iterator[SampleOrError]:
        for row in _csv_rows(reader, where):
            if isinstance(row, DataError):
                yield row
            elif row:
                place = f"{where}, line {reader.line_num}"
                try:
                    yield {
                        spec.name: _parse_cells(row, columns[spec.name], spec, header, place)
                        for spec in model.inputs
                    }
                except DataError as error:
                    yield error

    return samples()


def jsonl_samples(lines: Iterable[str], model: ModelInfo, where: str, note: Note) -> Iterator[SampleOrError]:
    """Parse JSON lines, `{"input": nested lists}`, into samples; other keys are ignored.

    Args:
        lines: lines of the file.
        model: model that takes the samples.
        where: name of the file, for messages.
        note: receives the names of ignored keys.
    """
    names = [spec.name for spec in model.inputs]
    noted = False
    for number, line in _numbered(lines, where):
        if isinstance(line, DataError):
            yield line
            return
        if not line.strip():
            continue
        try:
            sample = json.loads(line)
            if not isinstance(sample, dict):
                raise TypeError(f"expected an object by input name, got {type(sample).__name__}")  # noqa: TRY301
        except (ValueError, TypeError, RecursionError) as error:
            yield DataError(f"{where}, line {number}: is no JSON object: {error}")
            continue
        others = [key for key in sample if key not in names]
        if others and not noted and all(name in sample for name in names):
            noted = True
            note(f"{where}: ignored {', '.join(others)}")
        try:
            yield _json_arrays(sample, model, f"{where}, line {number}")
        except DataError as error:
            yield error


def _json_arrays(sample: dict[str, Any], model: ModelInfo, where: str) -> dict[str, Array]:
    found = {}
    for spec in model.inputs:
        if spec.name not in sample:
            near = difflib.get_close_matches(spec.name, sample, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise DataError(
                f"{where}: there is no {spec.name}; it holds {', '.join(sample) or 'nothing'}, and the model's "
                f"inputs are {', '.join(map(str, model.inputs))}{hint}"
            )
        found[spec.name] = fit_dtype(sample[spec.name], spec, where)
    return found


def _column_places(spec: TensorSpec, header: list[str], where: str, model: ModelInfo) -> list[int]:
    """Return the indices of a tensor's columns, in the order of its values."""
    size = math.prod(spec.dims) if -1 not in spec.dims else None
    if size is None and len(spec.dims) > 1:
        raise DataError(f"{where}: input {spec} has an open shape, which CSV can't hold; use .jsonl or .npz")
    if spec.name in header and size in (1, None):
        return [header.index(spec.name)]
    places: dict[int, int] = {}
    for place, column in enumerate(header):
        match = _COLUMN.match(column)
        if match and match["name"] == spec.name:
            places[int(match["index"])] = place
    wanted = range(len(places) if size is None else size)
    missing = [i for i in wanted if i not in places]
    if missing or not wanted:
        column = f"{spec.name}[{missing[0] if missing else 0}]" if size != 1 else spec.name
        near = difflib.get_close_matches(column, header, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise DataError(
            f"{where}: there is no column {column}; expected {_expected_columns(model)}, got {_quoted(header)}{hint}"
        )
    extra = [i for i in places if i not in wanted]
    if extra:
        raise DataError(
            f"{where}: column {spec.name}[{min(extra)}] is beyond the input {spec}, which has {size} values"
        )
    return [places[i] for i in wanted]


def _parse_cells(row: list[str], places: list[int], spec: TensorSpec, header: list[str], where: str) -> Array:
    """Return one tensor's array from the cells of a row."""
    if len(row) != len(header):
        raise DataError(f"{where}: expected {len(header)} columns, got {len(row)}")
    values: list[Any] = []
    for place in places:
        cell = row[place].strip() if spec.dtype != "BYTES" else row[place]
        try:
            values.append(_parse_cell(cell, spec))
        except (ValueError, KeyError) as error:
            raise DataError(
                f"{where}, column {header[place]}: expected {spec.dtype}, got {cell!r}"
            ) from error
    shape = spec.dims if -1 not in spec.dims else (len(values),)
    if spec.dtype == "BYTES":
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array.reshape(shape)
    try:
        with np.errstate(over="raise"):
            return np.array(values, dtype=spec.numpy).reshape(shape)
    except (OverflowError, FloatingPointError) as error:
        raise DataError(f"{where}: a value of {spec.name} is out of the range of {spec.dtype}") from error


def _parse_cell(cell: str, spec: TensorSpec) -> Any:
    kind = spec.numpy.kind
    if kind == "f":
        return float(cell)
    if kind == "O":
        return cell.encode()
    return _TRUTH[cell.lower()] if kind == "b" else int(cell)


def _csv_rows(reader: Any, where: str) -> Iterator[list[str] | DataError]:
    """Yield the reader's rows; a malformed line becomes an error, undecodable bytes end the file."""
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield DataError(f"{where}, line {reader.line_num}: is no CSV: {error}")
        except UnicodeDecodeError as error:
            yield DataError(f"{where}, after line {reader.line_num}: is not UTF-8: {error.reason}")
            return


def _numbered(lines: Iterable[str], where: str) -> Iterator[tuple[int, str | DataError]]:
    """Yield the lines with their numbers, from 1; undecodable bytes become an error."""
    number = 0
    try:
        for line in lines:
            number += 1
            yield number, line
    except UnicodeDecodeError as error:
        yield number + 1, DataError(f"{where}, after line {number}: is not UTF-8: {error.reason}")


def _expected_columns(model: ModelInfo) -> str:
    names = []
    for spec in model.inputs:
        size = math.prod(spec.dims)
        names.append(
            spec.name if size == 1 else f"{spec.name}[0] … {spec.name}[{'n' if size < 0 else size - 1}]"
        )
    return ", ".join(names)


def _quoted(names: list[str]) -> str:
    return ", ".join([*names[:_QUOTED_NAMES], "…"] if len(names) > _QUOTED_NAMES else names)


# --- writing


class _TextSink:
    """A text file that is flushed every half second, and closed once.

    Attributes:
        done: number of rows that an earlier run wrote.
    """

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

    def _flush_if_due(self) -> None:
        now = time.monotonic()
        if now - self._flushed_s >= self._flush_every_s:
            self._file.flush()
            self._flushed_s = now


class JsonLinesSink(_TextSink):
    """Write one JSON object a line: outputs as nested lists and `version`, or `error`.

    NaN and infinities are written as null.
    """

    def write(self, index: int, outputs: dict[str, Array], version: int, name: str | None = None) -> None:
        row = {spec.name: _nested_lists(outputs[spec.name]) for spec in self._outputs}
        self._write_line(_json_head(index, name) | row | {"version": version})

    def write_error(self, index: int, error: ClientError, name: str | None = None) -> None:
        self._write_line(_json_head(index, name) | {"error": str(error), "version": 0})

    @staticmethod
    def keep_complete_rows(path: Path, outputs: tuple[TensorSpec, ...]) -> int:
        """Remove an incomplete last line, and return the number of lines.

        Raises:
            DataError: the lines are not of these outputs.
        """
        count = end = 0
        with path.open("r+b") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                if count == 0:
                    _check_json_line(line, path, outputs)
                count, end = count + 1, end + len(line)
            file.truncate(end)
        return count

    def _write_line(self, row: dict[str, Any]) -> None:
        try:
            text = json.dumps(row, ensure_ascii=False, allow_nan=False)
        except ValueError:
            text = json.dumps(_finite(row), ensure_ascii=False)
        self._file.write(text + "\n")
        self._flush_if_due()


class CsvSink(_TextSink):
    """Write one row a sample: the outputs' values in columns `name` or `name[i]`, and `version`."""

    def __init__(self, file: IO[str], outputs: tuple[TensorSpec, ...], *, done: int = 0) -> None:
        super().__init__(file, outputs, done=done)
        self._writer = csv.writer(file, lineterminator="\n")
        self._sizes: list[int] = []
        self._errors_before_header = 0
        if file.tell():  # resumed: there is a header
            with Path(file.name).open(encoding="utf-8", newline="") as existing:
                self._sizes = _sizes_in(next(csv.reader(existing)), outputs) or []

    def write(self, index: int, outputs: dict[str, Array], version: int, name: str | None = None) -> None:
        cells = [_format_cells(outputs[spec.name]) for spec in self._outputs]
        sizes = list(map(len, cells))
        if not self._sizes:
            self._write_header(sizes)
        if sizes != self._sizes:
            raise DataError(
                f"sample {index}: outputs of {sizes} values after {self._sizes} fit no CSV; use .jsonl"
            )
        self._writer.writerow([*(cell for output in cells for cell in output), version])
        self._flush_if_due()

    def write_error(self, index: int, error: ClientError, name: str | None = None) -> None:
        if self._sizes:
            self._writer.writerow([*[""] * sum(self._sizes), 0])
            self._flush_if_due()
        else:
            self._errors_before_header += 1

    def close(self) -> None:
        if not self._sizes:  # no sample was answered: the columns follow the model's metadata
            self._write_header([max(1, math.prod(spec.dims)) for spec in self._outputs])
        super().close()

    @staticmethod
    def keep_complete_rows(path: Path, outputs: tuple[TensorSpec, ...]) -> int:
        """Remove an incomplete last row, and return the number of rows after the header.

        Raises:
            DataError: the columns are not those of these outputs.
        """
        count, end, position, complete = -1, 0, 0, True

        def lines(file: IO[bytes]) -> Iterator[str]:
            nonlocal position, complete
            for line in file:
                position += len(line)
                complete = line.endswith(b"\n")
                yield line.decode(errors="replace")

        with path.open("r+b") as file:
            width = 0
            try:
                for row in csv.reader(lines(file), strict=True):
                    if count < 0:
                        if not complete:
                            break
                        width = len(row)
                        if _sizes_in(row, outputs) is None:
                            names = ", ".join(spec.name for spec in outputs)
                            raise DataError(
                                f"{path}: --resume expected the columns of {names} and version, got {', '.join(row[:8])}"
                            )
                    if not complete or len(row) != width:
                        break
                    count, end = count + 1, position
            except csv.Error:  # an end in the middle of a quoted cell
                pass
            file.truncate(end)
        return max(0, count)

    def _write_header(self, sizes: list[int]) -> None:
        self._sizes = sizes
        self._writer.writerow(_output_columns(self._outputs, sizes))
        for _ in range(self._errors_before_header):
            self._writer.writerow([*[""] * sum(sizes), 0])


def _output_columns(outputs: tuple[TensorSpec, ...], sizes: list[int]) -> list[str]:
    names = [
        spec.name if size == 1 else f"{spec.name}[{i}]"
        for spec, size in zip(outputs, sizes, strict=True)
        for i in range(size)
    ]
    return [*names, "version"]


def _sizes_in(header: list[str], outputs: tuple[TensorSpec, ...]) -> list[int] | None:
    """Return the number of columns of each output in a header; None if it is not of these outputs."""
    sizes = [sum(c == spec.name or c.startswith(f"{spec.name}[") for c in header) for spec in outputs]
    return sizes if header == _output_columns(outputs, sizes) and all(sizes) else None


def _check_json_line(line: bytes, path: Path, outputs: tuple[TensorSpec, ...]) -> None:
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


def _json_head(index: int, name: str | None) -> dict[str, Any]:
    return {"index": index} if name is None else {"index": index, "source": name}


def _nested_lists(array: Array) -> Any:
    value = np.asarray(array).tolist()
    return value if array.dtype != object else _decoded(value)


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(v) for v in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _format_cells(array: Array) -> list[Any]:
    """Return an output's values as cells, in C order."""
    array = np.asarray(array)
    if array.dtype == object:
        return [_decoded(v) for v in array.ravel().tolist()]
    if array.dtype.kind == "f":
        # numpy's shortest text, which reads back to the same value of that dtype
        return [str(v) for v in array.ravel()]
    return array.ravel().tolist()


def _finite(value: Any) -> Any:
    """Return the value with null for NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list) else value
