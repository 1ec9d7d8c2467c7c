"""What lies in a model repository right now, so that a change of it is seen."""

import os
from dataclasses import dataclass
from pathlib import Path

from unitrain.errors import UnitrainError
from unitrain.repository import Repository

Stamp = tuple[tuple[str, int, int, int], ...]
"""Of each file: its path, modification time, size and inode. Equal stamps: nothing changed."""

_BESIDE_THE_MODEL = frozenset({"manifest.json", "golden.npz"})
"""Triton does not serve them, so that a change of them is none of the model's."""


@dataclass(frozen=True)
class ModelFiles:
    """One model as it lies on the disk."""

    config: Stamp
    versions: dict[int, Stamp]


def scan(repository: Repository) -> dict[str, ModelFiles]:
    """Every model of a repository, by name.

    Raises:
        RepositoryError: the root can't be read.
    """
    found = {}
    for model in repository.models():
        files = scan_model(repository, model)
        if files is not None:
            found[model] = files
    return found


def scan_model(repository: Repository, model: str) -> ModelFiles | None:
    """One model; None where it has vanished or is vanishing."""
    try:
        config = _stamp(repository.config_path(model))
        versions = {n: _stamp_tree(repository.version_dir(model, n)) for n in repository.versions(model)}
    except (OSError, UnitrainError):
        return None
    return ModelFiles(config, versions)


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return ((path.name, status.st_mtime_ns, status.st_size, status.st_ino),)


def _stamp_tree(folder: Path) -> Stamp:
    rows = []
    for root, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(set(files) - _BESIDE_THE_MODEL):
            status = os.stat(os.path.join(root, name))  # noqa: PTH116, PTH118 - os.walk gives strings
            rows.append((os.path.join(root, name), status.st_mtime_ns, status.st_size, status.st_ino))  # noqa: PTH118
    return tuple(rows)
