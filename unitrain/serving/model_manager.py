"""One model, kept served as its folder says: the newest good versions, whatever else lies there."""

import contextlib
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from unitrain.errors import RepositoryError
from unitrain.repository import Repository
from unitrain.repository.integrity import CheckedFiles, Contradiction, read_checked
from unitrain.serving.admin_client import Admin, Refused
from unitrain.serving.candidate import Candidates
from unitrain.serving.events import Reporter
from unitrain.serving.hang_detection import Progress, hung_processes, kill_processes
from unitrain.serving.health import probe_request
from unitrain.serving.model_folder import ModelFiles, ModelFolder, Stamp, override, scan_model
from unitrain.serving.security import runs_code
from unitrain.serving.triton.system_processes import start_of

PROBE_EVERY_S = 1.0
PROBE_TIMEOUT_S = 10.0
_PROBE_SHARE = 20
"""A probe is repeated no sooner than this many times what it took."""
_RELOADS = 3
_DEATHS = 3
"""A version that dies as often, each time before it has answered anything, is set aside for another."""
_BROKEN_VERSION = re.compile(r"version (\d+) is at UNAVAILABLE state: (.*?)(?=; *version \d+ is at |; *$|$)")
_PYTHON_PLACE = re.compile(r" +At: +\S+\.py\(\d+\): \w+")
"""What the stub adds to a Python exception: the place in our backend, which helps nobody."""
_DEAD_STUB = "is not healthy"


class RestartNeeded(Exception):  # noqa: N818 - a request to the supervisor
    """Reloading did not bring a model back; only a new Triton may."""


@dataclass
class _Served:
    """A version that Triton serves: its files as they were loaded, and how its probes went."""

    stamp: Stamp
    request: Any | None
    due_s: float = 0.0
    pids: tuple[int, ...] = ()
    answered: bool = False
    failures: int = 0
    timeouts: int = 0


Processes = dict[tuple[str, str], list[int]]
"""The processes that run each (model, version); empty where that can't be told."""

_File = tuple[Stamp, Stamp]
"""What a version is recognised by: the configuration's files and its own."""


class ModelKeeper:
    """Brings what Triton serves of one model in line with its folder.

    What could not be loaded is remembered by its files, and not tried again until they change.
    """

    def __init__(
        self,
        name: str,
        repository: Repository,
        reporter: Reporter,
        *,
        allowed_backends: frozenset[str] = frozenset(),
        explain: Callable[[str, str], str] = lambda _model, words: words,
        processes: Callable[[], Processes] = dict,
        candidates: Candidates | None = None,
    ) -> None:
        self.name = name
        self._candidates = candidates
        self._processes = processes
        self._explain = explain
        self._folder = ModelFolder(name, repository, allowed_backends)
        self._repository = repository
        self._reporter = reporter
        self._config: Any = None
        self._config_stamp: Stamp | None = None
        self._served: dict[int, _Served] = {}
        self._broken: dict[int, _File] = {}
        self._files = ModelFiles((), {})
        self._deaths: dict[_File, int] = {}
        self._refused: tuple[Stamp, dict[int, Stamp]] | None = None
        self._generation = 0
        self._reloads = 0

    @property
    def versions(self) -> list[int]:
        """The versions that Triton serves, ascending."""
        return sorted(self._served)

    def forget_served(self) -> None:
        """Triton has been restarted: it serves nothing now."""
        self._served = {}
        self._config_stamp = None
        self._reloads = 0

    def reconcile(self, files: ModelFiles | None, admin: Admin) -> None:
        """Load or unload what the folder asks for; nothing where it is served already.

        Raises:
            ServerGone: no server; what was under way is tried again next time.
        """
        if files is None:
            self._unload(admin, "its folder has gone")
            return
        if not files.config:
            # It may be being replaced; a folder without any version is nobody's model.
            if self._served or files.versions:
                self._refuse(((), {}), "it has no config.pbtxt")
            return
        self._files = files
        while not self._settle(files, admin):
            pass

    def _settle(self, files: ModelFiles, admin: Admin) -> bool:
        """Whether the matter is settled; False: look again, some version is known as broken now."""
        config = self._config if files.config == self._config_stamp else self._read_config(files)
        if config is None:
            return True
        wanted = self._wanted(files, config)
        if not wanted:
            self._unload(admin, "no version of it is left")
            if not self._broken.keys() & files.versions.keys():
                self._refuse((files.config, files.versions), self._folder.why_nothing(config, files))
            return True
        current = {version: served.stamp for version, served in self._served.items()}
        if wanted == current and files.config == self._config_stamp:
            self._refused = None
            return True
        return self._refused == (files.config, wanted) or self._load(files, config, wanted, admin)

    def probe(self, admin: Admin) -> None:
        """Ask each served version that is due for an answer, and reload the model when one is dead.

        Raises:
            RestartNeeded: reloading has not helped.
            ServerGone: no server.
        """
        for version, served in sorted(self._served.items()):
            if served.pids and all(start_of(pid) is None for pid in served.pids):
                reason: str | None = "its process has ended"
            elif served.request is None or time.monotonic() < served.due_s:
                continue
            else:
                reason = self._failure(admin, served)
            if reason is not None:
                if self._is_lost(version, served):
                    self._set_aside(admin, version, reason)
                else:
                    self._revive(admin, version, reason)
                return
            self._reloads = 0
            if served.answered:
                self._deaths.pop((self._config_stamp or (), served.stamp), None)

    def _is_lost(self, version: int, served: _Served) -> bool:
        """Whether a version has died once too often without any answer.

        Where no other can take its place, Triton is restarted first, once: each time the other models are away.
        """
        if served.answered:
            return False
        file = (self._config_stamp or (), served.stamp)
        self._deaths[file] = self._deaths.get(file, 0) + 1
        others = self._folder.whole(self._config, self._files).keys() - {version, *self._broken}
        return self._deaths[file] >= (_DEATHS if others else _RELOADS + 2)

    def _set_aside(self, admin: Admin, version: int, reason: str) -> None:
        """Have the other versions served without one that dies whenever it is asked."""
        self._broken[version] = (self._config_stamp or (), self._served[version].stamp)
        deaths = self._deaths.pop(self._broken[version], 0)
        self._reloads = 0
        del self._served[version]
        self._tell_failed(version, f"it died {deaths} times before it answered and is set aside: {reason}")
        self._load_anew(admin)

    def _failure(self, admin: Admin, served: _Served) -> str | None:
        """Why a version must be thought dead, or None."""
        began = time.monotonic()
        reason = None
        progress = Progress()
        progress.begin(served.pids)
        try:
            admin.infer(served.request, PROBE_TIMEOUT_S)
        except Refused as error:
            # A graph may refuse zeros: only what answered before, and no longer does, is ill. A
            # server that is busy is not.
            if _DEAD_STUB in str(error):
                reason = str(error)
            elif error.status == "DEADLINE_EXCEEDED":
                reason = self._end_hung(served, progress)
            elif served.answered:
                served.failures += 1
                reason = str(error) if served.failures > 1 else None
        else:
            served.answered, served.failures, served.timeouts = True, 0, 0
        took = time.monotonic() - began
        served.due_s = time.monotonic() + max(PROBE_EVERY_S, _PROBE_SHARE * took)
        return reason

    def _end_hung(self, served: _Served, progress: Progress) -> str | None:
        """End the processes of a version that hang, and return the reason; None where it is only busy."""
        served.timeouts += 1
        # A backend that was allowed by name may wait for something without computing.
        idle = progress if not runs_code(self._config) and served.timeouts > 1 else None
        version = "" if served.request is None else served.request.model_version
        hung = hung_processes(self._running(version), idle)
        if not hung:
            return None
        kill_processes(hung)
        return f"process {', '.join(map(str, hung))} hangs and was ended"

    def _running(self, version: str) -> list[int]:
        """The processes that run a version now."""
        return self._processes().get((self.name, version), [])

    def _revive(self, admin: Admin, version: int, reason: str) -> None:
        self._reporter.tell(
            "unhealthy",
            f"{self.name} version {version} does not answer and is reloaded: {reason}",
            model=self.name,
            version=version,
            reason=reason,
        )
        self._reloads += 1
        if self._reloads > _RELOADS:
            raise RestartNeeded(f"{self.name} does not answer after {_RELOADS} reloads")
        # Triton waits for a stopped process for ever, and keeps its memory.
        kill_processes(hung_processes(self._running(str(version)), None))
        self._generation += 1
        stamps = {number: served.stamp for number, served in self._served.items()}
        try:
            self._folder.check(self._config, self._files)
            for number in stamps:
                self._folder.check_version(self._config, number)
            if self._set_contradicted_aside(admin, stamps):
                return
            admin.load(self.name, override(self._config, stamps, self._generation))
        except (Refused, RepositoryError) as error:
            raise RestartNeeded(f"{self.name} can't be reloaded: {error}") from error
        self._serve(stamps, self._config)
        self._tell_loaded()

    def _set_contradicted_aside(self, admin: Admin, versions: Iterable[int]) -> bool:
        """Whether a version is no longer what its manifest says: the others are served without it then."""
        reasons = {}
        for version in versions:
            try:
                read_checked(self._repository.version_dir(self.name, version), in_memory_bytes=0)
            except Contradiction as error:
                reasons[version] = str(error)
        if reasons:
            self._drop(reasons, admin)
        return bool(reasons)

    def _drop(self, reasons: dict[int, str], admin: Admin) -> None:
        """Have the other versions served without these."""
        for version, reason in reasons.items():
            stamp = self._served.pop(version).stamp
            self._broken[version] = (self._config_stamp or (), stamp)
            self._tell_failed(version, reason)
        self._load_anew(admin)

    def _load_anew(self, admin: Admin) -> None:
        """Load what is left of the versions, whatever Triton still has of them."""
        if not self._served:
            admin.unload(self.name)
        self._config_stamp = None
        with contextlib.suppress(OSError, RepositoryError):  # else the next look sees to it
            self.reconcile(scan_model(self._repository, self.name), admin)

    def _read_config(self, files: ModelFiles) -> Any | None:
        try:
            return self._folder.config(files)
        except RepositoryError as error:
            self._refuse((files.config, {}), str(error))
            return None

    def _wanted(self, files: ModelFiles, config: Any) -> dict[int, Stamp]:
        """The versions to serve, with the files they are served from."""
        candidates = {}
        for version, stamp in self._folder.whole(config, files).items():
            if self._broken.get(version) != (files.config, stamp):
                candidates[version] = stamp
            elif version in self._served:  # overwritten by something broken: what was loaded serves on
                candidates[version] = self._served[version].stamp
        policy = config.version_policy
        if policy.HasField("specific"):
            chosen = sorted(set(policy.specific.versions) & set(candidates))
        elif policy.HasField("all"):
            chosen = sorted(candidates)
        else:
            chosen = sorted(candidates)[-max(policy.latest.num_versions, 1) :]
        return {version: candidates[version] for version in chosen}

    def _refuse(self, state: tuple[Stamp, dict[int, Stamp]], reason: str) -> None:
        """Tell once, as long as the files stay so, why nothing of them is loaded."""
        if self._refused != state:
            self._refused = state
            self._tell_failed(None, reason)

    def _load(self, files: ModelFiles, config: Any, wanted: dict[int, Stamp], admin: Admin) -> bool:
        """Whether the matter is settled, as of `_settle`."""
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
            served.stamp != wanted.get(version, served.stamp) for version, served in self._served.items()
        )
        if self._served and changed:
            self._generation += (
                1  # Triton compares times: what is older than what it knows, it takes for known
            )
        if any(_written_to(seen) for seen in checked):
            return True  # the next look sees it
        try:
            admin.load(self.name, override(config, wanted, self._generation))
        except Refused as error:
            return self._note_failure(files, wanted, self._explain(self.name, str(error)))
        self._refused = None
        self._config_stamp = files.config
        self._serve(wanted, config)
        written = {int(seen.folder.name): why for seen in checked if (why := _written_to(seen))}
        if written:
            self._drop(written, admin)
        else:
            self._tell_loaded()
        return True

    def _verified(
        self, files: ModelFiles, config: Any, wanted: dict[int, Stamp], admin: Admin
    ) -> list[CheckedFiles] | None:
        """The checked files of the versions that are loaded anew; None where one was found to be broken."""
        if self._candidates is None:
            return []
        checked, broken = [], False
        for version, stamp in wanted.items():
            served = self._served.get(version)
            if served is not None and served.stamp == stamp and files.config == self._config_stamp:
                continue  # Triton leaves it as it is
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

    def _note_failure(self, files: ModelFiles, wanted: dict[int, Stamp], words: str) -> bool:
        try:
            changed = scan_model(self._repository, self.name) != files
        except (OSError, RepositoryError):
            changed = True
        if changed:
            return True  # while it was read: look at it afresh
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
        self._tell_failed(version, reason)
        if version in self._served and self._served[version].stamp == wanted[version]:
            del self._served[version]  # it could not even be loaded again

    def _unload(self, admin: Admin, reason: str) -> None:
        if self._served:
            admin.unload(self.name)
            self._served = {}
            self._config_stamp = None
            self._reporter.tell(
                "unloaded", f"{self.name} is no longer served: {reason}", model=self.name, reason=reason
            )

    def _serve(self, wanted: dict[int, Stamp], config: Any) -> None:
        def request(version: int) -> Any | None:
            return probe_request(config, version, self._repository.version_dir(self.name, version))

        self._config = config
        running = self._processes()
        self._served = {
            version: _Served(stamp, request(version), pids=tuple(running.get((self.name, str(version)), ())))
            for version, stamp in wanted.items()
        }

    def _tell_loaded(self) -> None:
        shown = ", ".join(map(str, self.versions))
        plural = "s" if len(self._served) > 1 else ""
        self._reporter.tell(
            "loaded", f"{self.name} serves version{plural} {shown}", model=self.name, versions=self.versions
        )

    def _tell_failed(self, version: int | None, reason: str) -> None:
        reason = _PYTHON_PLACE.sub("", reason).strip()
        what = self.name if version is None else f"{self.name} version {version}"
        still = f"; still serving {', '.join(map(str, self.versions))}" if self._served else ""
        self._reporter.tell(
            "failed",
            f"{what} can't be loaded: {reason}{still}",
            model=self.name,
            version=version,
            reason=reason,
        )


def _written_to(files: CheckedFiles) -> str | None:
    """What was written to since it was checked; None where nothing was."""
    try:
        files.check_unchanged()
    except Contradiction as error:
        return str(error)
    return None
