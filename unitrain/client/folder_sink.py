"""Answers as a folder with a file a sample."""

import re
from pathlib import Path

import numpy as np

from unitrain.client.arrays import Array
from unitrain.errors import ClientError, DataError
from unitrain.tensors import TensorSpec

_NUMBERED = re.compile(r"(\d{8,})(_.*)?(\.npz|\.error\.txt)\Z")


class Folder:
    """`00000000.npz` with the outputs and `version`, or `00000000.error.txt` with what was wrong, a sample.

    The number is the sample's; where the source has names (files of a folder), its name follows: `00000003_cat.npz`.
    """

    def __init__(self, directory: Path, outputs: tuple[TensorSpec, ...], *, resume: bool) -> None:
        self._directory = directory
        self._names = [spec.name for spec in outputs]
        directory.mkdir(parents=True, exist_ok=True)
        matches = (_NUMBERED.match(path.name) for path in directory.iterdir())
        self.done = max((int(match[1]) + 1 for match in matches if match), default=0)
        if self.done and not resume:
            raise DataError(
                f"{directory}: holds the answers to {self.done} samples; --resume goes on after them, or name another folder"
            )

    def write(self, index: int, outputs: dict[str, Array], version: int, name: str | None = None) -> None:
        arrays = {
            output: array.astype("S") if array.dtype == object else array
            for output, array in ((output, np.asarray(outputs[output])) for output in self._names)
        }
        path = self._path(index, name, ".npz")
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays, version=np.int64(version))
        temporary.replace(path)

    def write_error(self, index: int, error: ClientError, name: str | None = None) -> None:
        self._path(index, name, ".error.txt").write_text(f"{error}\n", encoding="utf-8")

    def close(self) -> None:
        """Nothing is left: each file was whole at once."""

    def _path(self, index: int, name: str | None, suffix: str) -> Path:
        stem = f"{index:08d}" if name is None else f"{index:08d}_{Path(name).stem}"
        return self._directory / f"{stem}{suffix}"
