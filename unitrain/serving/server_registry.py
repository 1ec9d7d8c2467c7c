"""Registry of this user's running servers: their records and administration sockets, in private folders."""

import contextlib
import json
import math
import os
import re
import shutil
import stat
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from unitrain.atomic_files import write_json
from unitrain.errors import ServingError
from unitrain.serving.triton.system_processes import command_lines, start_of, started_at

_SHM_DIR = Path("/dev/shm")  # noqa: S108 - the folder of POSIX shared memory
_TMP_DIR = Path("/tmp")  # noqa: S108 - Triton makes its folders there, whatever TMPDIR says
MAX_SOCKET_PATH = 107
"""Maximum length of a Unix socket's path in bytes."""
ADMIN_NAME = "admin"
"""File name of the administration socket in `server_dir`."""
_MIN_AGE_S = 3600.0
"""Age of files that may be removed without a record. A server of another container may share the folder, but not the
process ids."""
_TRITON = re.compile(r"^\S*tritonserver( |$)")


@dataclass(frozen=True)
class ServerRecord:
    """Record of a running server.

    Attributes:
        pid: process id of the supervising `serve`.
        started: start of that process in kernel ticks; a later process with the same id has another.
        url: `host:port` of gRPC.
        repository: path of the model repository.
        shm_prefix: prefix of the names of its shared-memory regions.
        triton_pid: id of the tritonserver process and of its process group; 0 if it runs in a container.
        metrics: `host:port` of the Prometheus metrics.
        log: path of Triton's log.
        admin: path of the Unix socket for administration; empty if there is none.
        release: NVIDIA's release, such as `24.10`; empty if it is unknown.
        flags: further flags for tritonserver, from the user.
        errors: last errors by model and version: `time`, `event`, `reason`; "" is Triton itself.
    """

    pid: int
    started: int
    url: str
    repository: str
    shm_prefix: str
    triton_pid: int = 0
    metrics: str = ""
    log: str = ""
    admin: str = ""
    release: str = ""
    flags: list[str] = field(default_factory=list)
    errors: dict[str, dict[str, str]] = field(default_factory=dict)

    def is_alive(self) -> bool:
        """Return whether the server's process still runs."""
        return start_of(self.pid) == self.started

    def write(self) -> None:
        """Write the record where `find_server` reads it.

        Raises:
            ServingError: the runtime folder is not private, or can't be written.
        """
        try:
            write_json(runtime_dir() / _file_name(self.url), asdict(self), mode=0o600)
        except OSError as error:
            raise ServingError(f"the server's record can't be written: {error}") from error

    def remove(self) -> None:
        """Remove the record, the folder and the shared memory of its server."""
        with contextlib.suppress(OSError):
            for region in _SHM_DIR.glob(f"{self.shm_prefix}*"):
                region.unlink(missing_ok=True)
            for folder in filter(_is_own, _folders()):
                shutil.rmtree(folder / _server_name(self.shm_prefix), ignore_errors=True)
                path = folder / _file_name(self.url)
                found = _read(path)
                if found is not None and (found.pid, found.started) == (self.pid, self.started):
                    path.unlink(missing_ok=True)


_FIELDS = frozenset(field.name for field in fields(ServerRecord))
"""Known fields; a record of another release may have more."""


def find_server(url: str) -> ServerRecord | None:
    """Return the running server that this user's `serve` has at `url`, or None."""
    found = [_read(folder / _file_name(url)) for folder in filter(_is_own, _folders())]
    return next((record for record in found if record is not None and record.is_alive()), None)


def sweep() -> None:
    """Remove files of servers that were killed: records, shared memory and Triton's temporary folders."""
    for record in records():
        if not record.is_alive():
            record.remove()
    for folder in (_SHM_DIR, *filter(_is_own, _folders())):
        _sweep_unrecorded(folder)
    sweep_temporary()


def _sweep_unrecorded(folder: Path) -> None:
    """Remove shared memory, or folders, of ended servers that have no record."""
    with contextlib.suppress(OSError):
        for path in folder.glob("unitrain_*_*"):
            pid, found = path.name.split("_")[1], path.lstat()
            left = found.st_uid == os.getuid() and time.time() - found.st_mtime > _MIN_AGE_S
            if left and pid.isdecimal() and start_of(int(pid)) is None:
                if stat.S_ISDIR(found.st_mode):
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def records() -> list[ServerRecord]:
    """Return all records of this user, also those of servers that have ended."""
    found = [_read(path) for folder in filter(_is_own, _folders()) for path in folder.glob("*.json")]
    return [record for record in found if record is not None]


def sweep_temporary() -> None:
    """Remove the empty folders that ended Tritons left in /tmp.

    A Triton creates one when it loads its first model, and removes it only if it ends regularly. A folder that is
    older than every running Triton belongs to none of them.
    """
    with contextlib.suppress(OSError):
        running = [pid for pid, words in command_lines().items() if _TRITON.search(words)]
        oldest_s = min((s for pid in running if (s := started_at(pid))), default=math.inf)
        for folder in _TMP_DIR.glob("python_env_??????"):
            found = folder.lstat()
            if found.st_uid == os.getuid() and found.st_ctime < oldest_s - 1:
                with contextlib.suppress(OSError):  # it is not empty
                    folder.rmdir()


def runtime_dir() -> Path:
    """Return the private folder of the records, which is created if it is missing.

    Raises:
        ServingError: it can't be created, or is not private.
    """
    return _made(_folders()[0])


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ServingError(f"the runtime folder {folder} can't be made: {error.strerror}") from error
    if not _is_own(folder):
        raise ServingError(
            f"the runtime folder {folder} must be a folder of this user's with mode 0700; remove it"
        )
    return folder


def server_dir(shm_prefix: str) -> Path:
    """Return the path of a server's folder for its administration socket, short enough for a Unix socket in it.

    Raises:
        ServingError: as `runtime_dir`.
    """
    name = _server_name(shm_prefix)
    for parent in _folders():
        if len(os.fsencode(parent / name / ADMIN_NAME)) <= MAX_SOCKET_PATH:
            return _made(parent) / name
    return _made(_folders()[-1]) / name


def _folders() -> list[Path]:
    """Return the folders of records: the session's folder first; a `serve` of cron or systemd has no session."""
    of_user = f"/run/user/{os.getuid()}"
    parents = [Path(parent) for parent in (os.environ.get("XDG_RUNTIME_DIR"), of_user) if parent]
    found = [parent / "unitrain" for parent in parents if parent.is_dir()]
    return list(dict.fromkeys([*found, Path(f"/tmp/unitrain-{os.getuid()}")]))  # noqa: S108 - checked by _is_own


def _is_own(folder: Path) -> bool:
    """Return whether it is a folder that only this user can write or read."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def _server_name(shm_prefix: str) -> str:
    return shm_prefix.strip("_")


def _file_name(url: str) -> str:
    host, _, port = url.rpartition(":")
    return f"{'127.0.0.1' if host == 'localhost' else host}_{port}.json"


def _read(path: Path) -> ServerRecord | None:
    try:
        content = json.loads(path.read_text())
        return ServerRecord(**{key: value for key, value in content.items() if key in _FIELDS})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


__all__ = [
    "ServerRecord",
    "find_server",
    "records",
    "runtime_dir",
    "server_dir",
    "start_of",
    "sweep",
    "sweep_temporary",
]
