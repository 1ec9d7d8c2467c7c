"""Answers as numpy's files, rows first, in memory that does not grow.

A `.npy` file grows in place: numpy leaves room in its header for the number of rows, which is written anew
each time rows were added. An `.npz` file grows as a folder of such files beside it, and is put together at
the end. A failed row is NaN, or 0 where the dtype has none.
"""

import difflib
import shutil
import time
import urllib.parse
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from unitrain.atomic_files import replacing
from unitrain.client.input_validation import Array, check_names, fit_dtype
from unitrain.client.metadata import ModelInfo
from unitrain.errors import ClientError, DataError
from unitrain.signature import TensorSpec

_CHUNK_BYTES = 2**20
_format: Any = np.lib.format

Rows = tuple[Iterator[Mapping[str, Any]], int | None]
"""Samples, and how many there are."""


class Member(NamedTuple):
    """An array in an archive, read row by row: of a file that may be larger than memory.

    Attributes:
        path: of the archive.
        name: of the array.
        shape, dtype: as the array has them.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def rows(self) -> Iterator[Array]:
        """Its rows, in order.

        Raises:
            DataError: the archive is damaged.
        """
        row_bytes = max(1, int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize)
        at_once = max(1, _CHUNK_BYTES // row_bytes)
        with (
            _reading(self.path, "npz"),
            zipfile.ZipFile(self.path) as archive,
            archive.open(f"{self.name}.npy") as file,
        ):
            _read_head(file)
            for start in range(0, self.shape[0], at_once):
                count = min(at_once, self.shape[0] - start)
                data = bytearray(file.read(count * row_bytes))
                yield from np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])


def npy_rows(path: Path, model: ModelInfo) -> Rows:
    """Samples of a `.npy` file, which is mapped into memory, not read.

    Raises:
        DataError: it can't be read, or does not fit the model.
    """
    if len(model.inputs) != 1:
        names = ", ".join(spec.name for spec in model.inputs)
        raise DataError(f"{path}: a .npy file holds one array, but the model's inputs are {names}; use .npz")
    return array_rows({model.inputs[0].name: load_npy(path)}, model, str(path))


def npz_rows(path: Path, model: ModelInfo, note: Callable[[str], None]) -> Rows:
    """Samples of an `.npz` file, by the names of its arrays; those that are no inputs are passed over.

    Raises:
        DataError: it can't be read, or does not fit the model.
    """
    found = open_npz(path)
    wanted = [spec.name for spec in model.inputs]
    missing = [name for name in wanted if name not in found]
    if missing:
        near = difflib.get_close_matches(missing[0], found, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise DataError(
            f"{path}: there is no array {missing[0]}; it holds {', '.join(found) or 'none'}, and the model's inputs "
            f"are {', '.join(map(str, model.inputs))}{hint}"
        )
    others = [name for name in found if name not in wanted]
    if others:
        note(f"{path}: passed over {', '.join(others)}")
    members = {name: member for name in wanted if (member := found[name]) is not None}
    if model.signature.batched and len(members) == len(wanted):
        return array_rows(members, model, str(path))
    return array_rows(load_npz(path, tuple(wanted)), model, str(path))


def array_rows(arrays: Mapping[str, Array | Member], model: ModelInfo, where: str) -> Rows:
    """Arrays with rows first, by input name, as samples.

    Raises:
        DataError: names, shapes, dtypes or numbers of rows that do not fit.
    """
    check_names(arrays, model.signature, where)
    if not model.signature.batched:
        return iter([dict(arrays)]), 1
    for spec in model.inputs:
        _check_rows(arrays[spec.name], spec, where)
    counts = {name: array.shape[0] for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {n}" for name, n in counts.items())
        raise DataError(f"{where}: the arrays must have as many rows each, got {told}")
    names = tuple(arrays)
    scalars = {spec.name for spec in model.inputs if not spec.dims}
    columns = [_rows(array, scalar=name in scalars) for name, array in arrays.items()]
    rows = (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))
    return rows, next(iter(counts.values()))


def _rows(array: Array | Member, *, scalar: bool) -> Iterable[Any]:
    rows: Iterable[Any] = array.rows() if isinstance(array, Member) else array
    return (np.reshape(row, ()) for row in rows) if scalar and len(array.shape) > 1 else rows


def load_npy(path: Path) -> Array:
    """The array of a `.npy` file, mapped into memory.

    Raises:
        DataError: it can't be read.
    """
    with _reading(path, "npy"):
        with path.open("rb"):  # a missing file is told as such, whatever numpy makes of it
            pass
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        array.close()
        raise DataError(f"{path}: is no .npy file but an archive; name it .npz")
    return array


def load_npz(path: Path, names: tuple[str, ...] | None = None) -> dict[str, Array]:
    """The arrays of an `.npz` file, in memory; None: all of them.

    Raises:
        DataError: it can't be read.
    """
    with _reading(path, "npz"), path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in (archive.files if names is None else names)}


def open_npz(path: Path) -> dict[str, Member | None]:
    """What an `.npz` file holds, by name; None for an array that can only be read as a whole.

    Raises:
        DataError: it can't be read.
    """
    found: dict[str, Member | None] = {}
    with _reading(path, "npz"), zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            found[name] = None
            if name != info.filename:
                with archive.open(info) as file:
                    head = _read_head(file)
                if head is not None:
                    found[name] = Member(path, name, *head)
    return found


def _read_head(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]] | None:
    """Shape and dtype from a `.npy` file's beginning; None where its rows do not lie one after the other."""
    version = _format.read_magic(file)
    if version == (1, 0):
        shape, fortran_order, dtype = _format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran_order, dtype = _format.read_array_header_2_0(file)
    else:
        return None
    one_after_the_other = not fortran_order or len(shape) <= 1
    return (shape, dtype) if shape and one_after_the_other and not dtype.hasobject else None


@contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Turn what reading a file raises into one sentence."""
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from error
    except Exception as error:  # numpy and zipfile raise many kinds for a malformed file
        text = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: is no readable .{kind} file: {text}") from error


def _check_rows(array: Array | Member, spec: TensorSpec, where: str) -> None:
    shape = array.shape[1:]
    scalar = (spec.dims == (1,) and len(array.shape) == 1) or (not spec.dims and shape == (1,))
    fits = len(array.shape) == len(spec.dims) + 1 and all(
        d in (-1, n) for d, n in zip(spec.dims, shape, strict=True)
    )
    if not fits and not scalar:
        dims = ", ".join("?" if d < 0 else str(d) for d in spec.dims)
        raise DataError(
            f"{where}: input {spec.name} must have the shape [rows, {dims}], got {list(array.shape)}"
        )
    # One value tells whether the kind of dtype can fit at all, before the first sample is sent.
    kinds = {"O": "OSU", "b": "b"}.get(spec.numpy.kind, "iuf")
    if array.dtype.kind not in kinds and array.shape[0]:
        fit_dtype(np.zeros((1,) * len(array.shape), array.dtype), spec, where)


_FLUSH_EVERY_S = 0.5
_BUFFER_BYTES = 2**20


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
