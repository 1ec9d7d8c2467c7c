"""Model repository of Triton: its models and versions, and what changes them: publish, prune and roll back."""

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from unitrain.errors import RepositoryError
from unitrain.repository import layout
from unitrain.repository.commit import (
    ConfigChange,
    StagedVersion,
    check_labels,
    config_change,
    stage_version,
)
from unitrain.repository.manifest import read_manifest
from unitrain.repository.model_config import ModelConfig, read_config, served_numbers, signature_of
from unitrain.repository.staging import Staging
from unitrain.repository.verify import verify_version
from unitrain.signature import Signature

YOUNGEST_PRUNED_S = 60.0
"""A server may still be loading a version that is younger than this."""


class Repository:
    """Folder of models that Triton serves; creating this object touches no disk.

    Attributes:
        root: folder that contains model folders only.

    >>> Repository(Path("no_such_folder")).models()
    []
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    @property
    def staging_dir(self) -> Path:
        """Folder in which versions are written: beside the real root, so that a rename leads there.

        If the root is a mount point, or its parent is not writable, it is a folder inside the root. A
        stock Triton that polls logs a warning about it and keeps serving.
        """
        root = Path(os.path.realpath(self.root))
        beside, inside = root.parent / f".{root.name}.staging", root / layout.STAGING_NAME
        if not root.is_dir() or (beside.is_dir() and not inside.is_dir()):
            return beside
        closed = root.stat().st_dev != root.parent.stat().st_dev or not os.access(root.parent, os.W_OK)
        return inside if closed or inside.is_dir() else beside

    def check_writable(self) -> None:
        """Create the root and the staging folder, test a rename between them, and remove stale files.

        Raises:
            RepositoryError: one of the folders can't be written, or they are on different filesystems.
        """
        with self._explained("is not writable"):
            self.root.mkdir(parents=True, exist_ok=True)
            staging_dir = self.staging_dir
            staging_dir.mkdir(parents=True, exist_ok=True)
            # A file: Triton would take a folder in the root for a model.
            name = f".probe-{os.getpid()}-{time.monotonic_ns()}"
            probe, target = staging_dir / name, self.root / name
            try:
                probe.write_bytes(b"x" * 4096)
                probe.rename(target)
            finally:
                probe.unlink(missing_ok=True)
                target.unlink(missing_ok=True)
            for entry in layout.entries(staging_dir):
                if entry.is_dir(follow_symlinks=False):
                    Staging(staging_dir, entry.name).sweep()

    def models(self) -> list[str]:
        """Return the models' names, sorted: real folders with a valid name and a config.pbtxt."""
        return [entry.name for entry in layout.entries(self.root) if layout.is_model(entry)]

    def versions(self, model: str) -> list[int]:
        """Return the versions of a model, ascending; an empty list if there is no such model."""
        numbers = map(layout.version_number, layout.entries(self.model_dir(model)))
        return sorted(number for number in numbers if number is not None)

    def foreign(self, model: str | None = None) -> list[str]:
        """Return the names of foreign entries, which are never touched.

        Args:
            model: model whose folder is listed; None lists the folders and links in the root that are no models.
        """
        if model is None:
            others = (e for e in layout.entries(self.root) if not layout.is_model(e))
            return [
                e.name for e in others if (e.is_symlink() or e.is_dir()) and e.name != layout.STAGING_NAME
            ]
        found = layout.entries(self.model_dir(model))
        ours = (e for e in found if e.name != layout.CONFIG_NAME and not layout.LABELS.fullmatch(e.name))
        return [e.name for e in ours if layout.version_number(e) is None]

    def model_dir(self, model: str) -> Path:
        """Return the path of a model's folder, which need not exist.

        Raises:
            UsageError: no model can have that name.
        """
        return self.root / layout.check_model_name(model)

    def version_dir(self, model: str, version: int) -> Path:
        """Return the path of a version's folder, which need not exist."""
        return self.model_dir(model) / str(version)

    def config_path(self, model: str) -> Path:
        """Return the path of a model's config.pbtxt, which need not exist."""
        return self.model_dir(model) / layout.CONFIG_NAME

    def signature(self, model: str) -> Signature | None:
        """Return a model's inputs and outputs by its config.pbtxt; None if there is no such model.

        Raises:
            RepositoryError: config.pbtxt can't be read.
        """
        path = self.config_path(model)
        return signature_of(read_config(path)) if path.is_file() else None

    def config_change(
        self, model: str, config: ModelConfig, labels: Mapping[str, str] = MappingProxyType({})
    ) -> ConfigChange:
        """Return the effect that publishing with `config` would have on the existing config.pbtxt.

        Raises:
            RepositoryError: it was edited by hand and the settings changed as well, its class names differ, or
                it can't be read.
        """
        check_labels(self.model_dir(model), labels)
        written_path = Staging(self.staging_dir, model).config_path
        return config_change(self.config_path(model), written_path, config)

    @contextlib.contextmanager
    def new_version(
        self, model: str, config: ModelConfig | None, labels: Mapping[str, str] = MappingProxyType({})
    ) -> Iterator[StagedVersion]:
        """Publish the files that the block writes into `staged.path`, atomically, when it ends.

        The model is locked for the block. An exception discards the files and passes through.

        >>> import tempfile
        >>> from unitrain.repository import model_config
        >>> from unitrain.signature import TensorSpec
        >>> x, y = TensorSpec("x", "FP32", (3,)), TensorSpec("y", "FP32", ())
        >>> signature = Signature(inputs=(x,), outputs=(y,), batched=True)
        >>> config = model_config(
        ...     "line", signature, max_batch_size=8, num_versions=2, max_queue_delay_microseconds=100
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     repository = Repository(Path(folder, "triton_repo"))
        ...     with repository.new_version("line", config) as staged:
        ...         _ = (staged.path / "model.onnx").write_bytes(b"the graph")
        ...     staged.number, repository.versions("line")
        (1, [1])

        Args:
            model: name of the model.
            config: configuration for config.pbtxt. It is written with the first version, and again when the
                settings changed; a file that a user edited is kept. None keeps the existing file.
            labels: label files' text by name.

        Raises:
            RepositoryError: the inputs or outputs differ from the published ones, another process has been
                publishing for minutes, or the disk refused the version.
        """
        model_dir = self.model_dir(model)
        with self._explained(f"took no new version of {model}"):
            self.root.mkdir(parents=True, exist_ok=True)
            staging = Staging(self.staging_dir, model)
            with staging.exclusive(), stage_version(model_dir, staging, config, labels) as staged:
                yield staged

    def prune(self, model: str, keep: int, *, num_versions: int) -> list[int]:
        """Remove old versions, and return their numbers, oldest first.

        The newest `keep` versions stay, and never fewer than `num_versions` + 2: those that Triton serves
        and those that it may be loading. Versions that config.pbtxt serves stay, and those younger than a
        minute.

        Raises:
            RepositoryError: the disk refused it.
        """
        if len(self.versions(model)) <= max(keep, num_versions + 2):
            return []
        staging = Staging(self.staging_dir, model)
        removed: list[int] = []
        with self._explained(f"could not be pruned of old versions of {model}"), staging.exclusive():
            versions, now_s = self.versions(model), staging.now()
            config_path = self.config_path(model)
            served = served_numbers(read_config(config_path), versions) if config_path.is_file() else set()
            kept = max(keep, num_versions + 2, len(served) + 2)
            for number in versions[:-kept]:
                version_dir = self.version_dir(model, number)
                age_s = now_s - version_dir.stat().st_mtime
                if age_s < -YOUNGEST_PRUNED_S:
                    os.utime(version_dir)  # the clock was set back since: its age starts now
                if age_s < YOUNGEST_PRUNED_S or number in served:
                    continue
                # By a rename first: a reader sees a complete version or none.
                with staging.workspace() as work_dir:
                    version_dir.rename(work_dir / str(number))
                    shutil.rmtree(work_dir / str(number), ignore_errors=True)
                removed.append(number)
        return removed

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            where = error.filename2 or error.filename  # a rename's target
            path = f" ({where})" if where else ""
            way_out = {
                errno.EXDEV: f"; {self.staging_dir} is on another filesystem: move it to the repository's own disk",
                errno.ENOSPC: "; free some space there",
                errno.EROFS: "; choose another folder",
                errno.EACCES: "; grant this user the right to write there, or choose another folder",
            }.get(error.errno or 0, "")
            raise RepositoryError(
                f"the model repository {self.root} {what}: {reason}{path}{way_out}"
            ) from error


def roll_back(repository: Repository, model: str, version: int) -> int:
    """Publish an earlier version's files again, and return the new number; the manifest names the source.

    Raises:
        RepositoryError: there is no such version, it is damaged, or the disk refused it.
    """
    source = repository.version_dir(model, version)
    newest = repository.versions(model)[-1:]
    for check in verify_version(source):
        if check.passed is False:
            raise RepositoryError(
                f"{model}: version {version} is damaged, so it is not published again: {check.name}: {check.detail}"
            )
    manifest = read_manifest(source)
    with repository.new_version(model, None) as staged:
        try:
            for path in sorted(source.iterdir()):
                if path.name != layout.MANIFEST_NAME and path.is_file():
                    shutil.copyfile(path, staged.path / path.name)
        except FileNotFoundError as error:
            raise RepositoryError(f"{model}: version {version} has just been removed") from error
        if manifest is not None:
            replace(
                manifest,
                version=staged.number,
                published_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
                rolled_back_from={"version": version, "newest": newest[0]},
            ).write(staged.path)
    return staged.number
