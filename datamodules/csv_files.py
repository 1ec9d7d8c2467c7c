"""CSV files in parts of bounded size, with errors that name file, line and column; numpy alone."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unitrain.errors import DataError

MISSING = frozenset({"", "NA", "N/A", "NaN", "nan", "null", "None", "?"})
"""What a cell without a value holds."""

UNITS = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}
"""Of times since 1970, in microseconds."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_US = (datetime(9999, 12, 31, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)


@dataclass(frozen=True)
class Rows:
    """Some rows of a file, as text.

    Attributes:
        path: path of the file.
        lines: line number of each row in the file, from 1.
        columns: stripped text of each row, by column name.
    """

    path: Path
    lines: list[int]
    columns: dict[str, list[str]]

    def numbers(self, column: str) -> NDArray[np.float64]:
        """A column as numbers, [row]; NaN where a value is missing.

        Raises:
            DataError: a cell is no number.
        """
        cells = ["nan" if cell in MISSING else cell for cell in self.columns[column]]
        try:
            return np.array(cells, np.float64)
        except ValueError:
            wrong = next(row for row, cell in enumerate(cells) if not is_number(cell))
            raise self.wrong(wrong, column, "a number") from None

    def times_us(self, column: str, form: str | None = None) -> NDArray[np.int64]:
        """A column as microseconds since 1970, UTC, [row]. A time without a zone counts as UTC.

        Args:
            column: its name.
            form: format of `datetime.strptime`, or `ms`, `us` or `ns`, since 1970; None: ISO 8601, or seconds.

        Raises:
            DataError: a cell is no time, or one after the year 9999.
        """
        times: NDArray[np.int64] = np.empty(len(self.lines), np.int64)
        for row, cell in enumerate(self.columns[column]):
            try:
                times[row] = _microseconds(cell, form)
            except (ValueError, OverflowError):
                expected = (
                    "a time in ISO 8601 or in seconds since 1970, or a timestamp_format for other times"
                )
                if form:
                    expected = f"a time in {form} since 1970" if form in UNITS else f"a time like {form}"
                raise self.wrong(row, column, expected) from None
        return times

    def wrong(self, row: int, column: str, expected: str) -> DataError:
        """The error of one cell."""
        cell = self.columns[column][row]
        return DataError(
            f"{self.path}, line {self.lines[row]}, column {column}: expected {expected}, got {cell!r}"
        )


def read_header(path: Path, delimiter: str = ",") -> list[str]:
    """The names of a file's columns, which its first line has.

    Raises:
        DataError: the file can't be read, is empty, or names a column twice; the delimiter is no character.
    """
    if len(delimiter) != 1:
        raise DataError(
            f'{path}: expected a delimiter of one character, got {delimiter!r}; in YAML a tab is "\\t", with the quotes'
        )
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            names = [name.strip() for name in next(csv.reader(file, delimiter=delimiter), [])]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} can't be read as CSV: {error}") from error
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if not names or twice:
        got = f"{', '.join(map(repr, twice))} more than once" if twice else "an empty file"
        raise DataError(f"{path}, line 1: expected the names of the columns, each once, got {got}")
    return names


def read_rows(
    path: Path, columns: Sequence[str], *, delimiter: str = ",", at_once: int = 1 << 16
) -> Iterator[Rows]:
    """A file's rows, `at_once` of them at a time, so that it may be larger than memory.

    Raises:
        DataError: a column is missing, or a row has more or fewer cells than the first line.
    """
    names = read_header(path, delimiter)
    missing = [name for name in columns if name not in names]
    if missing:
        raise DataError(
            f"{path}, line 1: expected the columns {', '.join(missing)}, got {', '.join(names)}; "
            "name others, or the right delimiter"
        )
    places = [names.index(name) for name in columns]
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter=delimiter)
        next(reader)
        lines: list[int] = []
        cells: list[list[str]] = []
        for row in reader:
            if not row:
                continue  # an empty line, often the last
            if len(row) != len(names):
                raise DataError(
                    f"{path}, line {reader.line_num}: expected {len(names)} cells as in line 1, got {len(row)}"
                )
            lines.append(reader.line_num)
            cells.append([row[place].strip() for place in places])
            if len(lines) == at_once:
                yield _rows(path, columns, lines, cells)
                lines, cells = [], []
        if lines:
            yield _rows(path, columns, lines, cells)


def find_files(folder: str | Path, pattern: str = "*.csv") -> list[Path]:
    """The files of a folder that fit a pattern, by name.

    Args:
        folder: a path, or `package:path` for a folder in an installed package.
        pattern: pattern of `Path.glob`; `**/*.csv` includes subfolders.

    Raises:
        DataError: the folder, the package or such a file is not there.
    """
    root = data_path(folder)
    if not root.is_dir():
        raise DataError(f"{folder}: expected a folder of {pattern} files, but there is none")
    found = sorted(path for path in root.glob(pattern) if path.is_file())
    if not found:
        raise DataError(f"{folder}: expected files named {pattern}, got none of them")
    return found


def data_path(text: str | Path) -> Path:
    """The path itself, or, of `package:path`, the place in an installed package.

    Raises:
        DataError: there is no such package.
    """
    package, colon, inner = str(text).partition(":")
    if not colon or not package.isidentifier():
        return Path(text)
    try:
        return Path(str(files(package))) / inner
    except ModuleNotFoundError as error:
        raise DataError(f"{text}: the package {package} is not installed; pip install {package}") from error


def is_number(cell: str) -> bool:
    """Return whether a cell's text is a number as `float` reads it."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _rows(path: Path, columns: Sequence[str], lines: list[int], cells: list[list[str]]) -> Rows:
    return Rows(path, lines, dict(zip(columns, map(list, zip(*cells, strict=True)), strict=True)))


def _microseconds(cell: str, form: str | None) -> int:
    if form in UNITS or (form is None and is_number(cell)):
        time_us = round(float(cell) * UNITS[form or "s"])
        if time_us > _LAST_US:
            raise OverflowError(cell)
        return time_us
    time = datetime.strptime(cell, form) if form else datetime.fromisoformat(cell)  # noqa: DTZ007 - given below
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    return (time - _EPOCH) // timedelta(microseconds=1)
