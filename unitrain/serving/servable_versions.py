"""Folder of one model: its configuration, its complete versions, and what may be served."""

import contextlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unitrain.errors import RepositoryError
from unitrain.repository import Repository, layout, read_config
from unitrain.serving.model_security import check_config, check_files, check_numbers, runs_code

Stamp = tuple[tuple[str, int, int, int], ...]
"""Path, modification time, size and inode of each file; equal stamps mean that nothing has changed."""


@dataclass(frozen=True)
class ModelFiles:
    """Stamps of the files of one model.

    Attributes:
        config: stamp of config.pbtxt; empty if it is missing.
        versions: stamps by version, of each folder whose name is a version number.
    """

    config: Stamp
    versions: dict[int, Stamp]


def scan(repository: Repository) -> dict[str, ModelFiles]:
    """Return the files of every model of a repository, by name.

    Raises:
        RepositoryError: the root is missing or can't be read.
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
    """Return the files of one model.

    Raises:
        RepositoryError: its folder can't be read.
        OSError: the state of one of its files can't be read.
    """
    numbers = map(layout.folder_number, layout.entries(repository.model_dir(model)))
    return ModelFiles(
        config=_stamp([repository.config_path(model)]),
        versions={n: _stamp_tree(repository.version_dir(model, n)) for n in numbers if n is not None},
    )


def _stamp(paths: Iterable[Path | str]) -> Stamp:
    rows = []
    for path in paths:
        # Links are included, also those to nothing or in a circle.
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
    """Checked reading of a model's folder.

    Args:
        name: name of the model.
        repository: model repository.
        allowed_backends: backends that the user allowed in addition to `onnxruntime`.
    """

    def __init__(self, name: str, repository: Repository, allowed_backends: frozenset[str]) -> None:
        self._name = name
        self._repository = repository
        self._allowed_backends = allowed_backends

    def config(self, files: ModelFiles) -> Any:
        """Return Triton's ModelConfig message.

        Raises:
            RepositoryError: it can't be read, could run code or leave the folder, or has a number that is too large.
        """
        model_dir = self._repository.model_dir(self._name)
        check_files(self._repository.root, model_dir, ignored=map(str, files.versions), code=True)
        config = read_config(self._repository.config_path(self._name))
        check_config(config, self._allowed_backends)
        check_numbers(config)
        _check_axes(config)
        config.name = config.name or self._name
        return config

    def check(self, config: Any, files: ModelFiles) -> None:
        """Refuse a folder that Triton must not read; its versions are not checked.

        Raises:
            RepositoryError: the message has the reason.
        """
        folder, ignored = self._repository.model_dir(self._name), map(str, files.versions)
        check_files(self._repository.root, folder, ignored=ignored, code=runs_code(config))
        for entry in layout.entries(folder):
            if layout.ends_triton(entry.name):
                raise RepositoryError(
                    f"{entry.path} has a number larger than Triton can count to ({layout.LARGEST_VERSION}), which "
                    "would end it; remove the folder"
                )

    def check_version(self, config: Any, version: int) -> None:
        """Refuse a version that Triton must not read.

        Raises:
            RepositoryError: the message has the reason.
        """
        folder = self._repository.version_dir(self._name, version)
        check_files(self._repository.root, folder, code=runs_code(config))

    def complete_versions(self, config: Any, files: ModelFiles) -> dict[int, Stamp]:
        """Return the versions that have the file which their backend loads; others may still be written."""
        name = self._file_name(config)
        return {
            version: stamp
            for version, stamp in files.versions.items()
            if not name
            or str(self._repository.version_dir(self._name, version) / name) in {row[0] for row in stamp}
        }

    def why_nothing(self, config: Any, files: ModelFiles) -> str:
        """Return why no version is served."""
        complete = sorted(self.complete_versions(config, files))
        if complete:
            selected = ", ".join(map(str, config.version_policy.specific.versions))
            return f"version_policy selects version {selected}, and there is {', '.join(map(str, complete))}"
        return (
            f"there is no version of it; put {self._file_name(config) or 'its files'} into a folder with the "
            f"version's number, such as {self._name}/1"
        )

    def _file_name(self, config: Any) -> str:
        """Return the file that a version must have; empty if only its backend knows."""
        return "" if runs_code(config) else config.default_model_filename or layout.MODEL_NAME


def _check_axes(config: Any) -> None:
    """Refuse a tensor without any axis, with a clearer message than Triton's."""
    for kind, tensors in (("input", config.input), ("output", config.output)):
        for tensor in tensors:
            if config.max_batch_size <= 0 and tensor.HasField("reshape") and not tensor.reshape.shape:
                raise RepositoryError(
                    f"config.pbtxt has the {kind} {tensor.name} without any axis, such as a loss, which Triton can't "
                    "serve; remove it from the arguments and results of forward"
                )


def override(config: Any, versions: Iterable[int], generation: int) -> dict[str, Any]:
    """Return the configuration that loads only these versions: a broken version must not block the others.

    Args:
        config: Triton's ModelConfig message.
        versions: numbers of the versions.
        generation: count that makes Triton load versions again which it believes to be loaded.
    """
    from google.protobuf import json_format

    fields: dict[str, Any] = json_format.MessageToDict(config, preserving_proto_field_name=True)
    fields["version_policy"] = {"specific": {"versions": sorted(versions)}}
    if generation:
        parameters = fields.setdefault("parameters", {})
        parameters["unitrain_generation"] = {"string_value": str(generation)}
    return fields
