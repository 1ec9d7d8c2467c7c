"""What lies in a model repository right now, so that a change of it is seen."""

import contextlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from unitrain.errors import RepositoryError
from unitrain.repository import Repository, layout

Stamp = tuple[tuple[str, int, int, int], ...]
"""Of each file: its path, modification time, size and inode. Equal stamps: nothing changed."""


@dataclass(frozen=True)
class ModelFiles:
    """One model as it lies on the disk.

    Attributes:
        config: of config.pbtxt; empty where there is none.
        versions: of each folder whose name is a version's number, whatever it holds.
    """

    config: Stamp
    versions: dict[int, Stamp]


def scan(repository: Repository) -> dict[str, ModelFiles]:
    """Every folder of a repository that has a model's name, by it.

    Raises:
        RepositoryError: the root can't be read, or is not there.
    """
    try:
        with os.scandir(repository.root) as entries:
            names = [entry.name for entry in entries if layout.may_be_model(entry)]
        return {model: scan_model(repository, model) for model in names}
    except OSError as error:
        raise RepositoryError(
            f"{error.filename or repository.root} can't be read: {error.strerror}"
        ) from error


def scan_model(repository: Repository, model: str) -> ModelFiles:
    """One model, as much of it as is there.

    Raises:
        RepositoryError: its folder can't be read.
        OSError: one of its files can't be looked at.
    """
    numbers = map(layout.folder_number, layout.entries(repository.model_dir(model)))
    return ModelFiles(
        config=_stamp([repository.config_path(model)]),
        versions={n: _stamp_tree(repository.version_dir(model, n)) for n in numbers if n is not None},
    )


def _stamp(paths: Iterable[Path | str]) -> Stamp:
    rows = []
    for path in paths:
        # Links too, wherever they lead: to nothing, or in a circle.
        with contextlib.suppress(FileNotFoundError):  # it has just vanished, as temporary files do
            try:
                status = os.stat(path)  # noqa: PTH116 - half the paths are strings
            except OSError:
                status = os.lstat(path)
            if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
                rows.append((str(path), status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(rows)


def _stamp_tree(folder: Path) -> Stamp:
    found: list[str] = []
    for root, folders, files in os.walk(folder):
        folders.sort()
        found += (os.path.join(root, name) for name in sorted(files))  # noqa: PTH118 - os.walk gives strings
    return _stamp(found)
