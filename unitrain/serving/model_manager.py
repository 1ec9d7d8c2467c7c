"""Loading and unloading of one model: serve the newest valid versions of its folder."""

import contextlib
import re
from collections.abc import Callable, Iterable
from typing import Any

from unitrain.errors import RepositoryError
from unitrain.repository import Repository
from unitrain.repository.integrity import CheckedFiles, Contradiction, read_checked
from unitrain.serving.admin_client import Admin, Refused
from unitrain.serving.candidate import Candidates
from unitrain.serving.events import Reporter
from unitrain.serving.servable_versions import ModelFiles, ModelFolder, Stamp, override, scan_model

_BROKEN_VERSION = re.compile(r"version (\d+) is at UNAVAILABLE state: (.*?)(?=; *version \d+ is at |; *$|$)")
_PYTHON_LINE = re.compile(r" +At: +\S+\.py\(\d+\): \w+")
"""Suffix that Triton adds to a Python exception: the line of unitrain's backend, which helps no user."""

VersionFiles = tuple[Stamp, Stamp]
"""Identity of a version: stamps of config.pbtxt and of the version's files."""


class ModelManager:
    """Loads and unloads versions of one model, so that Triton serves what its folder holds.

    A version that could not be loaded is remembered by its files, and skipped until they change.

    Args:
        name: name of the model.
        repository: model repository.
        reporter: log of events.
        allowed_backends: backends that the user allowed in addition to `onnxruntime`.
        explain: function that returns the reason for a failure to load, from the model's name and Triton's
            answer.
        candidates: verification before a version is loaded; None: none.

    Attributes:
        name: name of the model.
        config: Triton's ModelConfig message of the last load; None before it.
        loads: number of loads up to now.
    """

    def __init__(
        self,
        name: str,
        repository: Repository,
        reporter: Reporter,
        *,
        allowed_backends: frozenset[str] = frozenset(),
        explain: Callable[[str, str], str] = lambda _model, words: words,
        candidates: Candidates | None = None,
    ) -> None:
        self.name = name
        self.config: Any = None
        self.loads = 0
        self._candidates = candidates
        self._explain = explain
        self._folder = ModelFolder(name, repository, allowed_backends)
        self._repository = repository
        self._reporter = reporter
        self._config_stamp: Stamp | None = None
        self._served: dict[int, Stamp] = {}
        self._broken: dict[int, VersionFiles] = {}
        self._files = ModelFiles((), {})
        self._refused: tuple[Stamp, dict[int, Stamp]] | None = None
        self._generation = 0

    @property
    def versions(self) -> list[int]:
        """Versions that Triton serves, ascending."""
        return sorted(self._served)

    def files_of(self, version: int) -> VersionFiles:
        """Return the identity of the files from which a served version was loaded."""
        return (self._config_stamp or (), self._served[version])

    def has_other_version(self, version: int) -> bool:
        """Return whether the folder holds a complete version that could take the place of another."""
        complete = self._folder.complete_versions(self.config, self._files)
        return bool(complete.keys() - {version, *self._broken})

    def forget(self) -> None:
        """Forget what was served: Triton has been restarted."""
        self._served = {}
        self._config_stamp = None

    def reconcile(self, files: ModelFiles | None, admin: Admin) -> None:
        """Load and unload versions until Triton serves what the folder holds.

        Args:
            files: files of the model; None: its folder was removed.
            admin: connection to the server.

        Raises:
            ServerGone: there is no server; the next call tries again.
        """
        if files is None:
            self._unload(admin, "its folder has gone")
            return
        if not files.config:
            # It may be being replaced. A folder without any version is not a model.
            if self._served or files.versions:
                self._refuse(((), {}), "it has no config.pbtxt")
            return
        self._files = files
        while not self._reconcile_once(files, admin):
            pass

    def reload(self, admin: Admin) -> None:
        """Load the served versions again, except for those that no longer match their manifests.

        Raises:
            Refused: Triton can't load them.
            RepositoryError: the folder may not be served any more.
            ServerGone: there is no server.
        """
        self._generation += 1
        stamps = dict(self._served)
        self._folder.check(self.config, self._files)
        for version in stamps:
            self._folder.check_version(self.config, version)
        damaged = self._damaged(stamps)
        if damaged:
            self.exclude(damaged, admin)
            return
        admin.load(self.name, override(self.config, stamps, self._generation))
        self._note_served(stamps, self.config)
        self._report_loaded()

    def exclude(self, reasons: dict[int, str], admin: Admin) -> None:
        """Serve the other versions without these.

        Args:
            reasons: reason by version.
            admin: connection to the server.
        """
        for version, reason in reasons.items():
            self._broken[version] = self.files_of(version)
            del self._served[version]
            self._report_failed(version, reason)
        if not self._served:
            admin.unload(self.name)
        self._config_stamp = None
        with contextlib.suppress(OSError, RepositoryError):  # the watcher calls again
            self.reconcile(scan_model(self._repository, self.name), admin)

    def _reconcile_once(self, files: ModelFiles, admin: Admin) -> bool:
        """Return whether nothing is left to do; False: a version turned out to be broken, so try again."""
        config = self.config if files.config == self._config_stamp else self._read_config(files)
        if config is None:
            return True
        wanted = self._wanted(files, config)
        if not wanted:
            self._unload(admin, "no version of it is left")
            if not self._broken.keys() & files.versions.keys():
                self._refuse((files.config, files.versions), self._folder.why_nothing(config, files))
            return True
        if wanted == self._served and files.config == self._config_stamp:
            self._refused = None
            return True
        return self._refused == (files.config, wanted) or self._load(files, config, wanted, admin)

    def _read_config(self, files: ModelFiles) -> Any | None:
        try:
            return self._folder.config(files)
        except RepositoryError as error:
            self._refuse((files.config, {}), str(error))
            return None

    def _wanted(self, files: ModelFiles, config: Any) -> dict[int, Stamp]:
        """Return the versions to serve, with the stamps of their files."""
        candidates = {}
        for version, stamp in self._folder.complete_versions(config, files).items():
            if self._broken.get(version) != (files.config, stamp):
                candidates[version] = stamp
            elif version in self._served:  # overwritten by broken files: the loaded ones are still served
                candidates[version] = self._served[version]
        policy = config.version_policy
        if policy.HasField("specific"):
            chosen = sorted(set(policy.specific.versions) & set(candidates))
        elif policy.HasField("all"):
            chosen = sorted(candidates)
        else:
            chosen = sorted(candidates)[-max(policy.latest.num_versions, 1) :]
        return {version: candidates[version] for version in chosen}

    def _load(self, files: ModelFiles, config: Any, wanted: dict[int, Stamp], admin: Admin) -> bool:
        """Load the wanted versions; return what `_reconcile_once` returns."""
        try:
            self._folder.check(config, files)
        except RepositoryError as error:
            self._refuse((files.config, wanted), str(error))
            return True
        for version in wanted:
            try:
                self._folder.check_version(config, version)
            except RepositoryError as error:
                self._note_broken(version, files, wanted, str(error))
                return False
        checked = self._verified(files, config, wanted, admin)
        if checked is None:
            return False
        changed = files.config != self._config_stamp or any(
            stamp != wanted.get(version, stamp) for version, stamp in self._served.items()
        )
        if self._served and changed:
            # Triton compares times: it takes files that are older than the loaded ones for known.
            self._generation += 1
        if any(_change_since_check(seen) for seen in checked):
            return True  # the watcher sees the change
        try:
            admin.load(self.name, override(config, wanted, self._generation))
        except Refused as error:
            return self._note_failure(files, wanted, self._explain(self.name, str(error)))
        self._refused = None
        self._config_stamp = files.config
        self._note_served(wanted, config)
        written = {int(seen.folder.name): why for seen in checked if (why := _change_since_check(seen))}
        if written:
            self.exclude(written, admin)
        else:
            self._report_loaded()
        return True

    def _verified(
        self, files: ModelFiles, config: Any, wanted: dict[int, Stamp], admin: Admin
    ) -> list[CheckedFiles] | None:
        """Return the checked files of the versions to load; None if one of them is broken."""
        if self._candidates is None:
            return []
        checked, broken = [], False
        for version, stamp in wanted.items():
            if self._served.get(version) == stamp and files.config == self._config_stamp:
                continue  # Triton does not load it again
            folder = self._repository.version_dir(self.name, version)
            try:
                found = self._candidates.verify(admin, self.name, config, version, folder)
            except RepositoryError as error:
                self._note_broken(version, files, wanted, str(error))
                broken = True
                continue
            if found is not None:
                checked.append(found)
        return None if broken else checked

    def _damaged(self, versions: Iterable[int]) -> dict[int, str]:
        """Return the versions that no longer match their manifests, with the reason."""
        reasons = {}
        for version in versions:
            try:
                read_checked(self._repository.version_dir(self.name, version), in_memory_bytes=0)
            except Contradiction as error:
                reasons[version] = str(error)
        return reasons

    def _unload(self, admin: Admin, reason: str) -> None:
        if self._served:
            admin.unload(self.name)
            self.forget()
            self._reporter.report(
                "unloaded", f"{self.name} is no longer served: {reason}", model=self.name, reason=reason
            )

    def _refuse(self, state: tuple[Stamp, dict[int, Stamp]], reason: str) -> None:
        """Report why nothing is loaded, once for each state of the files."""
        if self._refused != state:
            self._refused = state
            self._report_failed(None, reason)

    def _note_served(self, versions: dict[int, Stamp], config: Any) -> None:
        self.config = config
        self._served = dict(versions)
        self.loads += 1

    def _note_failure(self, files: ModelFiles, wanted: dict[int, Stamp], words: str) -> bool:
        """Find the versions that made a load fail; return what `_reconcile_once` returns."""
        try:
            changed = scan_model(self._repository, self.name) != files
        except (OSError, RepositoryError):
            changed = True
        if changed:
            return True  # it was written to while Triton read it
        blamed = {int(n): why for n, why in _BROKEN_VERSION.findall(words) if int(n) in wanted}
        if not blamed:
            fresh = [version for version in wanted if version not in self._served]
            if len(fresh) == 1:
                blamed = {fresh[0]: words}
        for version, why in blamed.items():
            self._note_broken(version, files, wanted, why)
        if not blamed:
            self._refuse((files.config, wanted), words)
        return not blamed

    def _note_broken(self, version: int, files: ModelFiles, wanted: dict[int, Stamp], reason: str) -> None:
        self._broken[version] = (files.config, files.versions[version])
        self._report_failed(version, reason)
        if version in self._served and self._served[version] == wanted[version]:
            del self._served[version]  # it could not be loaded a second time

    def _report_loaded(self) -> None:
        shown = ", ".join(map(str, self.versions))
        plural = "s" if len(self._served) > 1 else ""
        self._reporter.report(
            "loaded", f"{self.name} serves version{plural} {shown}", model=self.name, versions=self.versions
        )

    def _report_failed(self, version: int | None, reason: str) -> None:
        reason = _PYTHON_LINE.sub("", reason).strip()
        what = self.name if version is None else f"{self.name} version {version}"
        still = f"; still serving {', '.join(map(str, self.versions))}" if self._served else ""
        self._reporter.report(
            "failed",
            f"{what} can't be loaded: {reason}{still}",
            model=self.name,
            version=version,
            reason=reason,
        )


def _change_since_check(files: CheckedFiles) -> str | None:
    """Return which file was written to since it was checked; None if none was."""
    try:
        files.check_unchanged()
    except Contradiction as error:
        return str(error)
    return None
