"""Samples from lines of text: CSV with columns `name` or `name[i]`, and one JSON object a line."""

import csv
import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from unitrain.client.arrays import Array, fit_dtype
from unitrain.client.model import ModelInfo
from unitrain.errors import DataError
from unitrain.tensors import TensorSpec

_COLUMN = re.compile(r"(?P<name>.+?)\[(?P<index>\d+)\]\Z")

_TRUTH = {"true": True, "false": False, "1": True, "0": False}


def csv_samples(
    lines: Iterable[str], model: ModelInfo, where: str, note: Callable[[str], None]
) -> Iterator[Mapping[str, Any] | DataError]:
    """Samples of a CSV file, a row each; a tensor's values lie in columns `name[0]`, `name[1]`, … in C order.

    Raises:
        DataError: the header does not hold the model's inputs.
    """
    reader = csv.reader(lines, strict=True)
    try:
        header = next(reader, None)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{where}: is no CSV file in UTF-8: {error}") from error
    if header is None:
        raise DataError(f"{where}: is empty, expected a header line with {_wanted(model)}")
    header = [" ".join(name.removeprefix("\ufeff").split()) for name in header]
    columns = {spec.name: _columns_of(spec, header, where, model) for spec in model.inputs}
    used = {place for places in columns.values() for place in places}
    others = [name for place, name in enumerate(header) if place not in used]
    if others:
        note(f"{where}: passed over the columns {', '.join(others[:8])}{', …' if len(others) > 8 else ''}")  # noqa: PLR2004

    def samples() -> Iterator[Mapping[str, Any] | DataError]:
        rows = _rows(reader, where)
        for row in rows:
            if isinstance(row, DataError):
                yield row
            elif row:
                place = f"{where}, line {reader.line_num}"
                try:
                    yield {
                        spec.name: _cells(row, columns[spec.name], spec, header, place)
                        for spec in model.inputs
                    }
                except DataError as error:
                    yield error

    return samples()


def jsonl_samples(
    lines: Iterable[str], model: ModelInfo, where: str, note: Callable[[str], None]
) -> Iterator[Mapping[str, Any] | DataError]:
    """Samples of a file with one JSON object a line, `{"input": nested lists}`; other keys are passed over."""
    names = [spec.name for spec in model.inputs]

    def samples() -> Iterator[Mapping[str, Any] | DataError]:
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
                note(f"{where}: passed over {', '.join(others)}")
            try:
                yield _json_arrays(sample, model, f"{where}, line {number}")
            except DataError as error:
                yield error

    return samples()


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


def _columns_of(spec: TensorSpec, header: list[str], where: str, model: ModelInfo) -> list[int]:
    """The places of a tensor's columns, in the order of its values."""
    size = math.prod(spec.dims) if -1 not in spec.dims else None
    if size is None and len(spec.dims) > 1:
        raise DataError(f"{where}: input {spec} has an open shape, which CSV can't tell; use .jsonl or .npz")
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
        got = ", ".join(header[:8]) + (", …" if len(header) > 8 else "")  # noqa: PLR2004
        raise DataError(f"{where}: there is no column {column}; expected {_wanted(model)}, got {got}{hint}")
    extra = [i for i in places if i not in wanted]
    if extra:
        raise DataError(
            f"{where}: column {spec.name}[{min(extra)}] is beyond the input {spec}, which has {size} values"
        )
    return [places[i] for i in wanted]


def _cells(row: list[str], places: list[int], spec: TensorSpec, header: list[str], where: str) -> Array:
    if len(row) != len(header):
        raise DataError(f"{where}: expected {len(header)} columns, got {len(row)}")
    values: list[Any] = []
    for place in places:
        cell = row[place].strip() if spec.dtype != "BYTES" else row[place]
        try:
            values.append(_value(cell, spec))
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


def _value(cell: str, spec: TensorSpec) -> Any:
    kind = spec.numpy.kind
    if kind == "f":
        return float(cell)
    if kind == "O":
        return cell.encode()
    return _TRUTH[cell.lower()] if kind == "b" else int(cell)


def _rows(reader: Any, where: str) -> Iterator[list[str] | DataError]:
    """The reader's rows; a malformed line takes its place as an error, undecodable bytes end the file."""
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
    number = 0
    try:
        for line in lines:
            number += 1
            yield number, line
    except UnicodeDecodeError as error:
        yield number + 1, DataError(f"{where}, after line {number}: is not UTF-8: {error.reason}")


def _wanted(model: ModelInfo) -> str:
    names = []
    for spec in model.inputs:
        size = math.prod(spec.dims)
        names.append(
            spec.name if size == 1 else f"{spec.name}[0] … {spec.name}[{'n' if size < 0 else size - 1}]"
        )
    return ", ".join(names)
