"""Rows out of `.npy` and `.npz` files that may be larger than memory."""

import difflib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unitrain.client.arrays import Array, check_names, fit_dtype
from unitrain.client.model import ModelInfo
from unitrain.errors import DataError
from unitrain.tensors import TensorSpec

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
