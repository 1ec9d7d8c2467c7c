"""Recordings in CSV files as windows of one length, from files larger than memory; numpy alone.

A file is read once: its numbers go into memory-mapped files in a cache, where windows are slices. A file that
changed is read again.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unitrain.datamodules.csv_files import Rows, read_header, read_rows
from unitrain.errors import DataError

FORMAT = 1
"""Of the cached files; another number makes every file be read again."""
_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class Columns:
    """Columns of the files and their format.

    Attributes:
        timestamp: the column with the times, which must increase.
        channels: the columns that are the signal; empty: all with a name that are neither times nor labels.
        labels: columns with labels such as a class, as text.
        delimiter: between cells.
        timestamp_format: format of `datetime.strptime`, or `ms`, `us` or `ns`, since 1970; None: ISO 8601, or
            seconds since 1970.
    """

    timestamp: str = "timestamp"
    channels: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    delimiter: str = ","
    timestamp_format: str | None = None

    def channels_of(self, path: Path) -> tuple[str, ...]:
        """The channels that a file has."""
        others = ("", self.timestamp, *self.labels)  # a column without a name is a row's number, or nothing
        return self.channels or tuple(n for n in read_header(path, self.delimiter) if n not in others)


@dataclass(frozen=True)
class Recording:
    """One file's numbers, memory-mapped.

    Attributes:
        path: path of the CSV file.
        channels: their names.
        values: float32 [row, channel]; NaN where a value is missing.
        times_us: int64 [row], microseconds since 1970, UTC.
        labels: int32 [row] by column, indices into `label_names`.
        label_names: texts that occur, by column.
    """

    path: Path
    channels: tuple[str, ...]
    values: NDArray[np.float32]
    times_us: NDArray[np.int64]
    labels: Mapping[str, NDArray[np.int32]]
    label_names: Mapping[str, list[str]]

    def runs(self, max_gap: float) -> list[tuple[int, int]]:
        """(first row, row after the last) of each stretch without a gap and without a missing value.

        Args:
            max_gap: the longest time between two rows that is no gap, in multiples of the usual one.
        """
        n_rows = len(self.times_us)
        usual = float(np.median(np.diff(self.times_us[:_AT_ONCE]))) if n_rows > 1 else 0.0
        found: list[tuple[int, int]] = []
        begin: int | None = None
        for first in range(0, n_rows, _AT_ONCE):
            part = slice(first, min(first + _AT_ONCE, n_rows))
            whole = np.asarray(np.isfinite(self.values[part]).all(axis=1), np.bool_)
            times = self.times_us[max(first - 1, 0) : part.stop]
            after_gap = np.diff(times, prepend=times[:1] if first == 0 else times[:0]) > max_gap * usual
            # Only where something changes is there anything to do.
            before = np.concatenate([[begin is not None], whole[:-1]])
            for place in np.flatnonzero((whole != before) | (after_gap & whole)):
                row = first + int(place)
                if begin is not None:
                    found.append((begin, row))
                begin = row if whole[place] else None
        if begin is not None:
            found.append((begin, n_rows))
        return found


def open_recording(path: Path, columns: Columns, cache: Path) -> Recording:
    """A file's recording, read from the CSV file where the cache has none of it as it is now.

    Raises:
        DataError: the file is no CSV file of these columns, or its times don't increase.
    """
    channels = columns.channels_of(path)
    if not channels:
        raise DataError(f"{path}, line 1: expected a column beside times and labels, got none")
    stat = path.stat()
    key = repr((FORMAT, str(path.resolve()), stat.st_size, stat.st_mtime_ns, columns, channels))
    folder = cache / f"{path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if not folder.is_dir():
        _convert(path, columns, channels, folder)
    stored = json.loads((folder / "recording.json").read_text(encoding="utf-8"))
    n_rows = stored["rows"]

    def mapped(name: str, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        return np.memmap(folder / name, dtype, "r", shape=shape)

    return Recording(
        path,
        channels,
        mapped("values", np.float32, (n_rows, len(channels))),
        mapped("times_us", np.int64, (n_rows,)),
        {name: mapped(f"label_{i}", np.int32, (n_rows,)) for i, name in enumerate(columns.labels)},
        stored["label_names"],
    )


def _convert(path: Path, columns: Columns, channels: Sequence[str], folder: Path) -> None:
    """Write a file's numbers to the cache; the folder appears once they are complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".staging-"))
    codes: dict[str, dict[str, int]] = {name: {} for name in columns.labels}
    n_rows, last_us = 0, None
    try:
        with ExitStack() as stack:
            names = ["values", "times_us", *(f"label_{i}" for i in range(len(codes)))]
            files = [stack.enter_context((staging / name).open("wb")) for name in names]
            wanted = [columns.timestamp, *channels, *columns.labels]
            for rows in read_rows(path, wanted, delimiter=columns.delimiter):
                times = _increasing(rows, columns, last_us)
                arrays: list[NDArray[Any]] = [
                    np.stack([rows.numbers(name) for name in channels], 1).astype(np.float32),
                    times,
                ]
                for name, known in codes.items():
                    cells = rows.columns[name]
                    arrays.append(np.array([known.setdefault(cell, len(known)) for cell in cells], np.int32))
                for file, array in zip(files, arrays, strict=True):
                    file.write(array.tobytes())
                n_rows, last_us = n_rows + len(times), int(times[-1])
        if not n_rows:
            raise DataError(f"{path}: expected rows below the names of the columns, got none")
        content = {"rows": n_rows, "label_names": {name: list(known) for name, known in codes.items()}}
        (staging / "recording.json").write_text(json.dumps(content), encoding="utf-8")
        try:
            staging.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _increasing(rows: Rows, columns: Columns, last_us: int | None) -> NDArray[np.int64]:
    times = rows.times_us(columns.timestamp, columns.timestamp_format)
    before = np.concatenate([times[:1] - 1 if last_us is None else [last_us], times[:-1]])
    wrong = np.flatnonzero(times <= before)
    if len(wrong):
        raise rows.wrong(int(wrong[0]), columns.timestamp, "a later time than in the line before")
    return times


class Windows:
    """Windows of one length over stretches of recordings; a map-style data set.

    A sample is a mapping of `signals`, float32 [channel, step], `start` and `stop`, the times of its first and
    last row in ISO 8601, and one text for each label column: the label that most of its rows have.

    Args:
        stretches: (recording, first row, row after the last), each without a gap.
        n_steps: rows of a window.
        hop: rows from one window's begin to the next one's.
    """

    def __init__(self, stretches: Sequence[tuple[Recording, int, int]], n_steps: int, hop: int) -> None:
        self.stretches = [s for s in stretches if s[2] - s[1] >= n_steps]
        self.n_steps, self.hop = n_steps, hop
        counts = [(stop - first - n_steps) // hop + 1 for _, first, stop in self.stretches]
        self._ends: NDArray[np.int64] = np.cumsum(counts, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        stretch = int(np.searchsorted(self._ends, index, side="right"))
        recording, begin, _ = self.stretches[stretch]
        first = begin + (index - (int(self._ends[stretch - 1]) if stretch else 0)) * self.hop
        rows = slice(first, first + self.n_steps)
        start, stop = recording.times_us[[first, rows.stop - 1]]
        sample = {
            "signals": np.ascontiguousarray(recording.values[rows].T),
            "start": _iso(start),
            "stop": _iso(stop),
        }
        for name, codes in recording.labels.items():
            sample[name] = recording.label_names[name][int(np.bincount(codes[rows]).argmax())]
        return sample

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(means, standard deviations) of each channel over all rows of the stretches, [channel] each."""
        # In one pass, about the first row: large offsets would cost digits.
        origin = self.stretches[0][0].values[self.stretches[0][1]].astype(np.float64)
        count, total, squares = 0, np.zeros_like(origin), np.zeros_like(origin)
        for recording, begin, stop in self.stretches:
            for first in range(begin, stop, _AT_ONCE):
                part = recording.values[first : min(first + _AT_ONCE, stop)].astype(np.float64) - origin
                count += len(part)
                total += part.sum(0)
                squares += np.square(part).sum(0)
        means = total / count
        return origin + means, np.sqrt(np.maximum(squares / count - means**2, 0))


def _iso(time_us: np.int64) -> str:
    return str(np.datetime64(int(time_us), "us").astype("datetime64[ms]"))
