"""Samples from numpy's files, and answers into them: `.npy` and `.npz`, rows first, in constant memory.

Reading: a `.npy` file is mapped into memory. Arrays of an `.npz` file are read in chunks, except those in
Fortran order.

Writing: a `.npy` file grows in place. numpy leaves room in its header for the number of rows, and the header
is rewritten each time rows were added. An `.npz` file grows as a folder of `.npy` files beside it, which are
packed at the end. A failed row is NaN, or 0 where the dtype has no NaN.
"""

import difflib
import shutil
import time
import urllib.parse
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from unitrain.atomic_files import replacing
from unitrain.client.input_validation import Array, check_names, fit_dtype
from unitrain.client.io.samples import Note, Samples
from unitrain.client.metadata import ModelInfo
from unitrain.errors import ClientError, DataError
from unitrain.signature import TensorSpec

_CHUNK_BYTES = 2**20
"""Bytes that are read, copied or written at once."""
_FLUSH_EVERY_S = 0.5

_npy_format: Any = np.lib.format


# --- reading


class ArchiveMember(NamedTuple):
    """An array of an `.npz` file, read in chunks: the file may be larger than memory.

    Attributes:
        path: path of the archive.
        name: name of the array.
        shape, dtype: the array's shape, rows first, and dtype.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def rows(self) -> Iterator[Array]:
        """Yield the rows in order.

        Raises:
            DataError: the archive is damaged.
        """
        row_bytes = max(1, int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize)
        chunk_rows = max(1, _CHUNK_BYTES // row_bytes)
        with (
            _read_errors(self.path, "npz"),
            zipfile.ZipFile(self.path) as archive,
            archive.open(f"{self.name}.npy") as file,
        ):
            _read_header(file)
            for start in range(0, self.shape[0], chunk_rows):
                count = min(chunk_rows, self.shape[0] - start)
                data = bytearray(file.read(count * row_bytes))
                yield from np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])


def npy_rows(path: Path, model: ModelInfo) -> Samples:
    """Open a `.npy` file as samples of the model's only input.

    Raises:
        DataError: it can't be read, or does not fit the model.
    """
    if len(model.inputs) != 1:
        names = ", ".join(spec.name for spec in model.inputs)
        raise DataError(f"{path}: a .npy file holds one array, but the model's inputs are {names}; use .npz")
    return array_rows({model.inputs[0].name: load_npy(path)}, model, str(path))


def npz_rows(path: Path, model: ModelInfo, note: Note) -> Samples:
    """Open an `.npz` file as samples, by the names of its arrays; arrays that are no inputs are ignored.

    Raises:
        DataError: it can't be read, or does not fit the model.
    """
    found = _open_npz(path)
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
        note(f"{path}: ignored {', '.join(others)}")
    members = {name: member for name in wanted if (member := found[name]) is not None}
    if model.signature.batched and len(members) == len(wanted):
        return array_rows(members, model, str(path))
    return array_rows(load_npz(path, tuple(wanted)), model, str(path))


def array_rows(arrays: Mapping[str, Array | ArchiveMember], model: ModelInfo, where: str) -> Samples:
    """Return arrays as samples, one a row; for a model without a batch axis, as one sample.

    Args:
        arrays: arrays by input name, [rows, *dims of the input].
        model: model that takes the samples.
        where: start of error messages.

    Raises:
        DataError: names, shapes, dtypes or numbers of rows that do not fit.
    """
    check_names(arrays, model.signature, where)
    if not model.signature.batched:
        return Samples(iter([dict(arrays)]), 1)
    for spec in model.inputs:
        _check_rows(arrays[spec.name], spec, where)
    counts = {name: array.shape[0] for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        got = ", ".join(f"{name} {n}" for name, n in counts.items())
        raise DataError(f"{where}: the arrays must have as many rows each, got {got}")
    names = tuple(arrays)
    scalars = {spec.name for spec in model.inputs if not spec.dims}
    columns = [_rows_of(array, scalar=name in scalars) for name, array in arrays.items()]
    rows = (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))
    return Samples(rows, next(iter(counts.values())))


def load_npy(path: Path) -> Array:
    """Map the array of a `.npy` file into memory.

    Raises:
        DataError: it can't be read.
    """
    with _read_errors(path, "npy"):
        with path.open("rb"):  # numpy's own error for a missing file differs between versions
            pass
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        array.close()
        raise DataError(f"{path}: is no .npy file but an archive; name it .npz")
    return array


def load_npz(path: Path, names: tuple[str, ...] | None = None) -> dict[str, Array]:
    """Read arrays of an `.npz` file into memory, by name; all of them if `names` is None.

    Raises:
        DataError: it can't be read.
    """
    with _read_errors(path, "npz"), path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in (archive.files if names is None else names)}


def _open_npz(path: Path) -> dict[str, ArchiveMember | None]:
    """Return the arrays of an `.npz` file by name; None for one that can't be read in chunks."""
    found: dict[str, ArchiveMember | None] = {}
    with _read_errors(path, "npz"), zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            found[name] = None
            if name != info.filename:
                with archive.open(info) as file:
                    header = _read_header(file)
                if header is not None:
                    found[name] = ArchiveMember(path, name, *header)
    return found


def _read_header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]] | None:
    """Read shape and dtype from a `.npy` file's header; None if its rows can't be read one after the other."""
    version = _npy_format.read_magic(file)
    if version == (1, 0):
        shape, fortran_order, dtype = _npy_format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran_order, dtype = _npy_format.read_array_header_2_0(file)
    else:
        return None
    rows_are_contiguous = not fortran_order or len(shape) <= 1
    return (shape, dtype) if shape and rows_are_contiguous and not dtype.hasobject else None


def _rows_of(array: Array | ArchiveMember, *, scalar: bool) -> Iterable[Any]:
    """Return the rows; those of a [rows, 1] array as scalars, if the input has no dims."""
    rows: Iterable[Any] = array.rows() if isinstance(array, ArchiveMember) else array
    return (np.reshape(row, ()) for row in rows) if scalar and len(array.shape) > 1 else rows


def _check_rows(array: Array | ArchiveMember, spec: TensorSpec, where: str) -> None:
    """Check an array's shape, and that its dtype can be converted to the input's."""
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
    # Converting a single value shows if the kind of dtype can fit at all, before the first sample is sent.
    kinds = {"O": "OSU", "b": "b"}.get(spec.numpy.kind, "iuf")
    if array.dtype.kind not in kinds and array.shape[0]:
        fit_dtype(np.zeros((1,) * len(array.shape), array.dtype), spec, where)


@contextmanager
def _read_errors(path: Path, kind: str) -> Iterator[None]:
    """Convert any error of reading a file into a `DataError`."""
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from error
    except Exception as error:  # numpy and zipfile raise many kinds for a malformed file
        text = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: is no readable .{kind} file: {text}") from error


# --- writing


class NpySink:
    """Write one output's rows into a `.npy` file.

    Attributes:
        done: number of rows in the file when it was opened.
    """

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
            # A model without a batch axis: its one answer is the file's array, without an axis of rows.
            array = np.load(self._column.path)[0]
            with replacing(self._column.path) as file:
                np.save(file, array, allow_pickle=False)


class NpzSink:
    """Write one array an output, and `version` (int64, one a row), into an `.npz` file, atomically at the end.

    Attributes:
        done: number of complete rows when it was opened.
    """

    def __init__(self, path: Path, outputs: tuple[TensorSpec, ...], *, rows: bool, resume: bool) -> None:
        self._path = path
        self._rows = rows
        self._parts_dir = path.with_name(f"{path.name}.parts")
        if not resume and self._parts_dir.exists():
            shutil.rmtree(self._parts_dir)
        if resume and path.exists() and not self._parts_dir.exists():
            _unpack(path, self._parts_dir)
        self._parts_dir.mkdir(parents=False, exist_ok=True)
        specs = (*outputs, TensorSpec("version", "INT64", ()))
        self._columns = {s.name: Column(_part(self._parts_dir, s.name), s, resume=resume) for s in specs}
        # A killed process may leave columns of several lengths: the rows that all of them have are complete.
        self.done = min(column.count for column in self._columns.values())
        for column in self._columns.values():
            column.truncate(self.done)

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
                        self._copy(column, member, one_array=not self._rows and name != "version")
        except OSError as error:
            raise DataError(f"{self._path}: can't be written: {error.strerror}") from error
        shutil.rmtree(self._parts_dir, ignore_errors=True)

    def _copy(self, column: "Column", member: IO[bytes], *, one_array: bool) -> None:
        with column.path.open("rb") as file:
            if one_array and column.count == 1:
                np.save(member, np.load(file, allow_pickle=False)[0], allow_pickle=False)
            else:
                shutil.copyfileobj(file, member, _CHUNK_BYTES)


class Column:
    """A `.npy` file that grows by rows, and is readable at any time up to the last flush.

    Attributes:
        path: path of the file.
        count: number of rows, those not yet flushed included.
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
        # The width of strings is known with the last of them: they stay in memory until then.
        self._strings: list[Array | None] | None = [] if spec.dtype == "BYTES" else None
        resuming = resume and path.exists() and path.stat().st_size > 0
        if resuming:
            self._check_existing_rows()
        self._file = path.open("r+b" if resuming else "w+b")
        if not resuming:
            self._write_header()
        self.truncate(self.count)

    def append(self, row: Any, index: int) -> None:
        """Add a row; None is a failed one.

        Raises:
            DataError: its shape differs from that of the rows before it.
        """
        unknown = row is None and (self._dims is None or self._strings is not None)
        dims = self._dims if row is None else np.shape(row)
        if self._dims is None and dims is not None:
            self._fix_shape(dims)
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
        if self._pending_bytes >= _CHUNK_BYTES or now - self._flushed_s >= _FLUSH_EVERY_S:
            self._flush()
            self._flushed_s = now

    def truncate(self, count: int) -> None:
        """Keep the first `count` rows only."""
        self.count = count
        self._file.truncate(self._header_bytes() + count * self._row_bytes())
        self._flush()

    def close(self) -> None:
        """Write the remaining rows and close the file."""
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

    def _fix_shape(self, dims: tuple[int, ...]) -> None:
        """Take the first answered row's shape; failed rows before it are written now."""
        self._dims = dims
        if self._strings is None:
            self._pending = [self._failed_row()] * self.count
            self._file.truncate(0)

    def _flush(self) -> None:
        if self._strings is not None or self._file.closed:
            return
        # Data first: the header never counts rows that the file does not have.
        self._file.seek(0, 2)
        if self._file.tell() == 0:
            self._write_header(count=0)
        self._file.writelines(self._pending)
        self._file.flush()
        self._pending.clear()
        self._pending_bytes = 0
        self._write_header()

    def _write_header(self, count: int | None = None) -> None:
        rows = self.count if count is None else count
        shape = (rows, *(max(0, d) for d in (self._dims or self._spec.dims)))
        descr = _npy_format.dtype_to_descr(self._file_dtype())
        self._file.seek(0)
        _npy_format.write_array_header_1_0(
            self._file, {"descr": descr, "fortran_order": False, "shape": shape}
        )
        self._file.flush()

    def _header_bytes(self) -> int:
        self._file.seek(0)
        _npy_format.read_magic(self._file)
        _npy_format.read_array_header_1_0(self._file)  # the version that `_write_header` writes
        return self._file.tell()

    def _check_existing_rows(self) -> None:
        """Take shape and number of the rows of an earlier run.

        Raises:
            DataError: they are unreadable, or another output's.
        """
        if self._strings is not None:
            raise DataError(f"{self.path}: --resume can't continue after strings; use .jsonl")
        try:
            array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except Exception as error:
            raise DataError(f"{self.path}: --resume can't read it: {' '.join(str(error).split())}") from error
        fits = array.ndim == len(self._spec.dims) + 1 and array.dtype == self._file_dtype()
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

    def _file_dtype(self) -> np.dtype[Any]:
        return np.dtype("S1") if self._strings is not None else self._dtype


def _part(parts_dir: Path, name: str) -> Path:
    return parts_dir / f"{urllib.parse.quote(name, safe='')}.npy"


def _unpack(path: Path, parts_dir: Path) -> None:
    """Extract an archive's members into a folder, where rows can be added to them."""
    parts_dir.mkdir()
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                part = _part(parts_dir, info.filename.removesuffix(".npy"))
                with archive.open(info) as member, part.open("wb") as file:
                    shutil.copyfileobj(member, file, _CHUNK_BYTES)
    except Exception as error:
        shutil.rmtree(parts_dir)
        raise DataError(f"{path}: --resume can't read it: {' '.join(str(error).split())}") from error
