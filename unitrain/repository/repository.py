"""The repository's folder: what is in it, and the three ways to change it."""

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from unitrain.errors import RepositoryError
from unitrain.repository import layout
from unitrain.repository.commit import ConfigChange, check_labels, commit_version, config_change
from unitrain.repository.manifest import FILE_NAME as MANIFEST_NAME
from unitrain.repository.manifest import read_manifest
from unitrain.repository.model_config import ModelConfig, read_config, served_numbers, signature_of
from unitrain.repository.staging import Staging
from unitrain.repository.verify import verify_version
from unitrain.signature import Signature

YOUNGEST_PRUNED_S = 60.0
"""A version younger than this may just be being loaded."""


class Repository:
    """A folder of models that Triton serves; making this object touches no disk.

    Attributes:
        root: holds model folders only.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    @property
    def staging_dir(self) -> Path:
        """Where versions are made: beside the root that a link leads to, so that a rename reaches it.

        In a root that is a mount point, or whose parent takes no folder, it is a folder of the root: a
        stock Triton that polls complains of it in its log, and serves on.
        """
        root = Path(os.path.realpath(self.root))
        beside, inside = root.parent / f".{root.name}.staging", root / layout.STAGING_NAME
        if not root.is_dir() or (beside.is_dir() and not inside.is_dir()):
            return beside
        closed = root.stat().st_dev != root.parent.stat().st_dev or not os.access(root.parent, os.W_OK)
        return inside if closed or inside.is_dir() else beside

    def check_writable(self) -> None:
        """Make the root and the staging folder, prove that a rename leads from one to the other, sweep.

        Raises:
            RepositoryError: it does not, and why.
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
        """The names of the models, sorted: real folders with a valid name and a config.pbtxt."""
        return [entry.name for entry in layout.entries(self.root) if layout.is_model(entry)]

    def versions(self, model: str) -> list[int]:
        """The versions of a model, ascending; none where there is no such model."""
        numbers = map(layout.version_number, layout.entries(self.model_dir(model)))
        return sorted(number for number in numbers if number is not None)

    def foreign(self, model: str | None = None) -> list[str]:
        """What else lies in a model's folder, or, without one, which folders and links in the root are no models.

        It is left alone.
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
        """A model's folder, there or not.

        Raises:
            UsageError: no model can have that name.
        """
        return self.root / layout.check_model_name(model)

    def version_dir(self, model: str, version: int) -> Path:
        """A version's folder, there or not."""
        return self.model_dir(model) / str(version)

    def config_path(self, model: str) -> Path:
        """A model's config.pbtxt, there or not."""
        return self.model_dir(model) / layout.CONFIG_NAME

    def signature(self, model: str) -> Signature | None:
        """What a model takes and gives, by its config.pbtxt; None where there is no such model.

        Raises:
            RepositoryError: config.pbtxt is there but can't be read.
        """
        path = self.config_path(model)
        return signature_of(read_config(path)) if path.is_file() else None

    def config_change(
        self, model: str, config: ModelConfig, labels: Mapping[str, str] = MappingProxyType({})
    ) -> ConfigChange:
        """What publishing with `config` would do with the config.pbtxt that is there.

        Raises:
            RepositoryError: it was edited by hand and the settings changed too, its class names are others, or
                it can't be read.
        """
        check_labels(self.model_dir(model), labels)
        written_path = Staging(self.staging_dir, model).config_path
        return config_change(self.config_path(model), written_path, config)

    def publish(
        self,
        model: str,
        config: ModelConfig | None,
        fill: Callable[[Path, int], None],
        labels: Mapping[str, str] = MappingProxyType({}),
    ) -> int:
        """The number of a new version, which from one moment to the next is there, whole and on the disk.

        Args:
            model: its name.
            config: written with the first version, and again where it changed and nobody else did: a
                person's edits are kept. None: what is there is kept.
            fill: writes the version's files into the folder that it is given, knowing its number. What
                it raises passes through, and nothing appears.
            labels: the text of label files by name.

        Raises:
            RepositoryError: the inputs or outputs are not those published before, another process is
                publishing for minutes, or the disk refused.
        """
        model_dir = self.model_dir(model)
        with self._explained(f"took no new version of {model}"):
            self.root.mkdir(parents=True, exist_ok=True)
            staging = Staging(self.staging_dir, model)
            with staging.exclusive():
                return commit_version(model_dir, staging, config, fill, labels)

    def prune(self, model: str, keep: int, *, num_versions: int) -> list[int]:
        """The versions that were removed, oldest first.

        The newest `keep` stay, never fewer than `num_versions` + 2 (what Triton serves, and what it may
        be loading), none that config.pbtxt serves, and none that is younger than a minute.

        Raises:
            RepositoryError: the disk refused.
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
                    os.utime(version_dir)  # the clock was set back since: its age begins now
                if age_s < YOUNGEST_PRUNED_S or number in served:
                    continue
                # Out by a rename first: a reader sees the whole version or none.
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
                errno.EXDEV: f"; {self.staging_dir} lies on another filesystem: let it be a folder of the same disk",
                errno.ENOSPC: "; free some space there",
                errno.EROFS: "; choose another folder",
                errno.EACCES: "; grant this user the right to write there, or choose another folder",
            }.get(error.errno or 0, "")
            raise RepositoryError(
                f"the model repository {self.root} {what}: {reason}{path}{way_out}"
            ) from error


def roll_back(repository: Repository, model: str, version: int) -> int:
    """The number of a new version with an earlier one's files; its manifest says from which.

    Raises:
        RepositoryError: there is no such version, it is damaged, or the disk refused.
    """
    source = repository.version_dir(model, version)
    newest = repository.versions(model)[-1:]
    for check in verify_version(source):
        if check.passed is False:
            raise RepositoryError(
                f"{model}: version {version} is damaged, so it is not published again: {check.name}: {check.detail}"
            )
    manifest = read_manifest(source)

    def fill(version_dir: Path, number: int) -> None:
        try:
            for path in sorted(source.iterdir()):
                if path.name != MANIFEST_NAME and path.is_file():
                    shutil.copyfile(path, version_dir / path.name)
        except FileNotFoundError as error:
            raise RepositoryError(f"{model}: version {version} has just been removed") from error
        if manifest is not None:
            replace(
                manifest,
                version=number,
                published_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
                rolled_back_from={"version": version, "newest": newest[0]},
            ).write(version_dir)

    return repository.publish(model, None, fill)
