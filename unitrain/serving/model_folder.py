"""One model's folder: its configuration, which versions lie there whole, and what may be given to Triton."""

import contextlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unitrain.errors import RepositoryError
from unitrain.repository import Repository, layout, read_config
from unitrain.serving.security import check_config, check_files, check_numbers, runs_code

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


class ModelFolder:
    """What the keeper reads of a model; everything here raises `RepositoryError` where it may not be served."""

    def __init__(self, name: str, repository: Repository, allowed_backends: frozenset[str]) -> None:
        self._name = name
        self._repository = repository
        self._allowed_backends = allowed_backends

    def config(self, files: ModelFiles) -> Any:
        """Triton's ModelConfig message.

        Raises:
            RepositoryError: it can't be read, could run code or leave the folder, or has a number that is too large.
        """
        model_dir = self._repository.model_dir(self._name)
        check_files(self._repository.root, model_dir, beside=map(str, files.versions), code=True)
        config = read_config(self._repository.config_path(self._name))
        check_config(config, self._allowed_backends)
        check_numbers(config)
        _check_axes(config)
        config.name = config.name or self._name
        return config

    def check(self, config: Any, files: ModelFiles) -> None:
        """Return where the folder itself, without its versions, may be given to Triton.

        Raises:
            RepositoryError: it may not, and why.
        """
        folder, beside = self._repository.model_dir(self._name), map(str, files.versions)
        check_files(self._repository.root, folder, beside=beside, code=runs_code(config))
        for entry in layout.entries(folder):
            if layout.ends_triton(entry.name):
                raise RepositoryError(
                    f"{entry.path} has a number larger than Triton can count to ({layout.LARGEST_VERSION}), which "
                    "would end it; remove the folder"
                )

    def check_version(self, config: Any, version: int) -> None:
        """Return where a version's folder may be given to Triton.

        Raises:
            RepositoryError: it may not, and why.
        """
        folder = self._repository.version_dir(self._name, version)
        check_files(self._repository.root, folder, code=runs_code(config))

    def whole(self, config: Any, files: ModelFiles) -> dict[int, Stamp]:
        """The versions that hold what their backend loads; others may be being written."""
        name = self._file_name(config)
        return {
            version: stamp
            for version, stamp in files.versions.items()
            if not name
            or str(self._repository.version_dir(self._name, version) / name) in {row[0] for row in stamp}
        }

    def why_nothing(self, config: Any, files: ModelFiles) -> str:
        """Why no version of it is to be served."""
        whole = sorted(self.whole(config, files))
        if whole:
            asked, there = (", ".join(map(str, n)) for n in (config.version_policy.specific.versions, whole))
            return f"version_policy asks for version {asked}, and there is {there}"
        return (
            f"there is no version of it; put {self._file_name(config) or 'its files'} into a folder with the "
            f"version's number, such as {self._name}/1"
        )

    def _file_name(self, config: Any) -> str:
        """What a version must hold; empty where only its backend knows."""
        return "" if runs_code(config) else config.default_model_filename or layout.MODEL_NAME


def _check_axes(config: Any) -> None:
    """Refuse a tensor without any axis, in clearer words than Triton's."""
    for kind, tensors in (("input", config.input), ("output", config.output)):
        for tensor in tensors:
            if config.max_batch_size <= 0 and tensor.HasField("reshape") and not tensor.reshape.shape:
                raise RepositoryError(
                    f"config.pbtxt has the {kind} {tensor.name} without any axis, such as a loss, which Triton can't "
                    "serve; leave it out of what forward takes and returns"
                )


def override(config: Any, versions: Iterable[int], generation: int) -> dict[str, Any]:
    """The configuration that loads just these versions: one that is broken must not hold up the rest.

    Args:
        generation: where it is another than before, Triton loads anew what it takes for known.
    """
    from google.protobuf import json_format

    fields: dict[str, Any] = json_format.MessageToDict(config, preserving_proto_field_name=True)
    fields["version_policy"] = {"specific": {"versions": sorted(versions)}}
    if generation:
        parameters = fields.setdefault("parameters", {})
        parameters["unitrain_generation"] = {"string_value": str(generation)}
    return fields
