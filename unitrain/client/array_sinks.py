"""Answers as numpy's files, rows first, in memory that does not grow.

A `.npy` file grows in place: numpy leaves room in its header for the number of rows, which is written anew
each time rows were added. An `.npz` file grows as a folder of such files beside it, and is put together at
the end. A failed row is NaN, or 0 where the dtype has none.
"""

import shutil
import time
import urllib.parse
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from unitrain.client.arrays import Array
from unitrain.durable import replacing
from unitrain.errors import ClientError, DataError
from unitrain.tensors import TensorSpec

_FLUSH_EVERY_S = 0.5
_BUFFER_BYTES = 2**20
_format: Any = np.lib.format


class Npy:
    """One output's rows in a `.npy` file."""

    def __init__(self, path: Path, output: TensorSpec, *, rows: bool, resume: bool) -> None:
        self._name = output.name
        self._column = Column(path, output, resume=resume)
        self._rows = rows
        self.done = self._column.count

    def write(self, index: int, outputs: dict[str, Array], version: int, name: str | None = None) -> None:
        self._column.append(outputs[self._name], index)

    def write_error(self, index: int, error: ClientError, name: str | None = None) -> None:
        self._column.append(None, index)

    def close(self) -> None:
        self._column.close()
        if not self._rows and self._column.count == 1:
            # One whole array went in, so one whole array comes out.
            array = np.load(self._column.path)[0]
            with replacing(self._column.path) as file:
                np.save(file, array, allow_pickle=False)


class Npz:
    """One array an output, and `version` (int64, a row each), in an `.npz` file that is whole or not there."""

    def __init__(self, path: Path, outputs: tuple[TensorSpec, ...], *, rows: bool, resume: bool) -> None:
        self._path = path
        self._rows = rows
        self._parts = path.with_name(f"{path.name}.parts")
        if not resume and self._parts.exists():
            shutil.rmtree(self._parts)
        if resume and path.exists() and not self._parts.exists():
            _unpack(path, self._parts)
        self._parts.mkdir(parents=False, exist_ok=True)
        specs = (*outputs, TensorSpec("version", "INT64", ()))
        self._columns = {s.name: Column(self._part(s.name), s, resume=resume) for s in specs}
        # A killed process left one column longer than another: what they all have is whole.
        self.done = min(column.count for column in self._columns.values())
        for column in self._columns.values():
            column.cut(self.done)

    def write(self, index: int, outputs: dict[str, Array], version: int, name: str | None = None) -> None:
        for output, column in self._columns.items():
            column.append(np.int64(version) if output == "version" else outputs[output], index)

    def write_error(self, index: int, error: ClientError, name: str | None = None) -> None:
        for column in self._columns.values():
            column.append(None, index)

    def close(self) -> None:
        for column in self._columns.values():
            column.close()
        try:
            with replacing(self._path) as file, zipfile.ZipFile(file, "w") as archive:
                for name, column in self._columns.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        self._copy(column, member, whole=not self._rows and name != "version")
        except OSError as error:
            raise DataError(f"{self._path}: can't be written: {error.strerror}") from error
        shutil.rmtree(self._parts, ignore_errors=True)

    def _copy(self, column: "Column", member: IO[bytes], *, whole: bool) -> None:
        with column.path.open("rb") as file:
            if whole and column.count == 1:
                np.save(member, np.load(file, allow_pickle=False)[0], allow_pickle=False)
            else:
                shutil.copyfileobj(file, member, _BUFFER_BYTES)

    def _part(self, name: str) -> Path:
        return self._parts / f"{urllib.parse.quote(name, safe='')}.npy"


class Column:
    """A `.npy` file that grows by rows, and can be read at any time up to the last flush.

    Attributes:
        path: of the file.
        count: rows so far, those not yet flushed too.
    """

    def __init__(self, path: Path, spec: TensorSpec, *, resume: bool) -> None:
        self.path = path
        self.count = 0
        self._spec = spec
        self._dtype = spec.numpy
        self._dims: tuple[int, ...] | None = spec.dims if -1 not in spec.dims else None
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._flushed_s = time.monotonic()
        # Strings have no width before the last of them is known: they are kept until then.
        self._strings: list[Array | None] | None = [] if spec.dtype == "BYTES" else None
        going_on = resume and path.exists() and path.stat().st_size > 0
        if going_on:
            self._read_head()
        self._file = path.open("r+b" if going_on else "w+b")
        if not going_on:
            self._write_head()
        self.cut(self.count)

    def append(self, row: Any, index: int) -> None:
        """Add a row; None is one that failed.

        Raises:
            DataError: it has another shape than those before it.
        """
        unknown = row is None and (self._dims is None or self._strings is not None)
        dims = self._dims if row is None else np.shape(row)
        if self._dims is None and dims is not None:
            self._begin(dims)
        if dims != self._dims:
            raise DataError(
                f"sample {index}: output {self._spec.name} has the shape {list(dims or ())} after "
                f"{list(self._dims or ())}, which fits no array; use .jsonl"
            )
        self.count += 1
        if self._strings is not None:
            self._strings.append(None if row is None else np.asarray(row))
        if unknown or self._strings is not None:
            return
        data = self._failed_row() if row is None else np.asarray(row, dtype=self._dtype).tobytes()
        self._pending.append(data)
        self._pending_bytes += len(data)
        now = time.monotonic()
        if self._pending_bytes >= _BUFFER_BYTES or now - self._flushed_s >= _FLUSH_EVERY_S:
            self._flush()
            self._flushed_s = now

    def cut(self, count: int) -> None:
        """Keep the first `count` rows only."""
        self.count = count
        self._file.truncate(self._head_bytes() + count * self._row_bytes())
        self._flush()

    def close(self) -> None:
        """Write what is left."""
        if self._file.closed:
            return
        if self._strings is not None:
            empty = np.full(self._dims or (), b"", dtype=object)
            rows = [empty if row is None else row for row in self._strings]
            array = np.array(rows, dtype=object).reshape(len(rows), *(self._dims or ())).astype("S")
            self._file.truncate(0)
            self._file.seek(0)
            np.save(self._file, array, allow_pickle=False)
        else:
            self._flush()
        self._file.close()

    def _begin(self, dims: tuple[int, ...]) -> None:
        """Fix the shape by the first row that was answered; those that failed before it get theirs now."""
        self._dims = dims
        if self._strings is None:
            self._pending = [self._failed_row()] * self.count
            self._file.truncate(0)

    def _flush(self) -> None:
        if self._strings is not None or self._file.closed:
            return
        # Data first: a header never promises rows that are not there.
        self._file.seek(0, 2)
        if self._file.tell() == 0:
            self._write_head(count=0)
        self._file.writelines(self._pending)
        self._file.flush()
        self._pending.clear()
        self._pending_bytes = 0
        self._write_head()

    def _write_head(self, count: int | None = None) -> None:
        rows = self.count if count is None else count
        shape = (rows, *(max(0, d) for d in (self._dims or self._spec.dims)))
        head = {"descr": _format.dtype_to_descr(self._stored()), "fortran_order": False, "shape": shape}
        self._file.seek(0)
        _format.write_array_header_1_0(self._file, head)
        self._file.flush()

    def _head_bytes(self) -> int:
        self._file.seek(0)
        _format.read_magic(self._file)
        _format.read_array_header_1_0(self._file)
        return self._file.tell()

    def _read_head(self) -> None:
        if self._strings is not None:
            raise DataError(f"{self.path}: --resume can't go on after strings; use .jsonl")
        try:
            array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except Exception as error:
            raise DataError(f"{self.path}: --resume can't read it: {' '.join(str(error).split())}") from error
        fits = array.ndim == len(self._spec.dims) + 1 and array.dtype == self._stored()
        if fits and self._dims is None and len(array):
            self._dims = array.shape[1:]
        if not fits or (self._dims is not None and array.shape[1:] != self._dims):
            raise DataError(
                f"{self.path}: --resume expected rows of {self._spec}, got {array.dtype}{list(array.shape)}"
            )
        self.count = len(array)

    def _failed_row(self) -> bytes:
        value = np.nan if self._dtype.kind == "f" else 0
        return np.full(self._dims or (), value, dtype=self._dtype).tobytes()

    def _row_bytes(self) -> int:
        return len(self._failed_row()) if self._dims is not None and self._strings is None else 0

    def _stored(self) -> np.dtype[Any]:
        return np.dtype("S1") if self._strings is not None else self._dtype


def _unpack(path: Path, parts: Path) -> None:
    """Lay an archive's members out as files beside it, to be added to."""
    parts.mkdir()
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = urllib.parse.quote(info.filename.removesuffix(".npy"), safe="")
                with archive.open(info) as member, (parts / f"{name}.npy").open("wb") as file:
                    shutil.copyfileobj(member, file, _BUFFER_BYTES)
    except Exception as error:
        shutil.rmtree(parts)
        raise DataError(f"{path}: --resume can't read it: {' '.join(str(error).split())}") from error
