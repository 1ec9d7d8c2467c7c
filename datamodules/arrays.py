"""Arrays in memory, or in an .npz file, as batches by name."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule

from unitrain.datamodules.csv_files import data_path
from unitrain.errors import DataError
from unitrain.loaders import ArrayLoader

Arrays = Mapping[str, NDArray[Any]]


class InMemory(LightningDataModule):
    """Arrays of one length as batches that have their names.

    Batches are mappings of each array's name to a tensor [batch, ...]. Without validation arrays a share of the
    training rows, drawn by the seed, is kept for validation.

    Args:
        train: the arrays by name, [row, ...] each; or an .npz file's path that holds them, where
            `package:path` is a file in an installed package.
        validation: the same for validation; None: a share of `train`.
        test: the same for the test; None: there is none.
        names: arrays that are used, in the batches' order; empty: all.
        validation_share: share of the training rows, in (0, 1), where there are no validation arrays.
        batch_size: rows a training batch.
        drop_last: skip the last training batch if it is not full.
        seed: seed of the choice of validation rows.

    Raises:
        DataError: a file can't be read, an array is missing, holds objects, or differs in length; a part has no
            rows, or arrays of other names, shapes or dtypes than training has.
    """

    def __init__(
        self,
        train: str | Arrays,
        *,
        validation: str | Arrays | None = None,
        test: str | Arrays | None = None,
        names: Sequence[str] = (),
        validation_share: float = 0.2,
        batch_size: int = 64,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size, self.drop_last = batch_size, drop_last
        known = read_arrays(train, names)
        self._file = train if isinstance(train, str) else "the training arrays"
        self._file_rows = np.arange(len(next(iter(known.values()))))
        if validation is None:
            rows = len(next(iter(known.values())))
            n_validation = round(rows * validation_share)
            if not 0 < n_validation < rows:
                raise DataError(
                    f"InMemory: expected rows for training and for validation, got {rows} rows and validation_share "
                    f"{validation_share}"
                )
            order = np.random.default_rng(seed).permutation(rows)
            chosen, rest = np.sort(order[:n_validation]), np.sort(order[n_validation:])
            self._file_rows = rest
            self.train = {name: array[rest] for name, array in known.items()}
            self.validation = {name: array[chosen] for name, array in known.items()}
        else:
            self.train, self.validation = known, read_arrays(validation, names)
        self.test = None if test is None else read_arrays(test, names)
        for part, arrays in (("validation", self.validation), ("test", self.test or self.train)):
            expected, got = _described(self.train), _described(arrays)
            if got != expected:
                raise DataError(f"InMemory, {part}: expected {expected} as in training, got {got}")

    def place_of(self, row: int) -> str:
        """File and row (from 0) of a training row, for messages."""
        return f"{self._file}, row {self._file_rows[row]}"

    def train_dataloader(self) -> ArrayLoader:
        return ArrayLoader(self.train, batch_size=self.batch_size, shuffle=True, drop_last=self.drop_last)

    def val_dataloader(self) -> ArrayLoader:
        return ArrayLoader(self.validation, batch_size=max(256, self.batch_size))

    def test_dataloader(self) -> ArrayLoader | list[ArrayLoader]:
        # An empty list means that there is no test.
        return [] if self.test is None else ArrayLoader(self.test, batch_size=max(256, self.batch_size))


def read_arrays(source: str | Arrays, names: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """The arrays by name, those of `names` or all.

    Raises:
        DataError: the file can't be read, an array is missing, holds objects, or differs in length.
    """
    if isinstance(source, Mapping):
        where, found = "arrays", dict(source)
    else:
        where, path = source, data_path(source)
        try:
            with np.load(Path(path), allow_pickle=False) as file:
                found = {name: file[name] for name in names or file.files if name in file}
        except (OSError, ValueError, zipfile.BadZipFile, AttributeError, TypeError) as error:
            raise DataError(f"{where} can't be read as an .npz file of numbers: {error}") from error
    missing = [name for name in names if name not in found]
    if missing or not found:
        raise DataError(
            f"{where}: expected the arrays {', '.join(missing) or 'of the data'}, got {', '.join(found) or 'none'}"
        )
    chosen = {name: np.asarray(found[name]) for name in names or found}
    for name, array in chosen.items():
        if array.dtype.kind not in "fiub" or array.ndim < 1:
            raise DataError(f"{where}, {name}: expected numbers [row, ...], got {array.dtype} {array.shape}")
    lengths = {name: len(array) for name, array in chosen.items()}
    if len(set(lengths.values())) != 1 or not next(iter(lengths.values())):
        found_lengths = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(f"{where}: expected arrays of one length above 0, got {found_lengths}")
    return {name: _for_torch(array, f"{where}, {name}") for name, array in chosen.items()}


def _for_torch(array: NDArray[Any], where: str) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        converted = array.astype(_dtype_for_torch(array.dtype), copy=False)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1 and len(array) and (converted < 0).any():
        raise DataError(f"{where}: expected integers below 2**63, got {array.max()}")
    if array.dtype.kind == "f" and array.dtype.itemsize > 4:  # noqa: PLR2004 - bytes of a float32
        lost = np.argwhere(np.isinf(converted) & ~np.isinf(array))
        if len(lost):
            place = tuple(int(i) for i in lost[0])
            raise DataError(
                f"{where}, row {place[0]}: expected numbers below 3e38 (float32), got {array[place]:.3g}"
            )
    return converted


def _dtype_for_torch(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The nearest one that torch is at home in: 32 bits, this machine's byte order, no sign only in 8 bits."""
    if dtype.kind == "f" and dtype.itemsize > 4:  # noqa: PLR2004 - bytes of a float32
        return np.dtype(np.float32)
    if dtype.kind == "u" and dtype.itemsize > 1:
        return np.dtype(np.int32 if dtype.itemsize == 2 else np.int64)  # noqa: PLR2004 - bytes of a uint16
    return dtype.newbyteorder("=")


def _described(arrays: Arrays) -> str:
    return ", ".join(f"{name} {array.dtype}{list(array.shape[1:])}" for name, array in sorted(arrays.items()))
