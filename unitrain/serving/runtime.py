"""Which servers run here, and the secret of each, in files that only this user reads."""

import contextlib
import json
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path

from unitrain.durable import write_json
from unitrain.errors import ServingError

_SHM_DIR = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lies


@dataclass(frozen=True)
class ServerRecord:
    """A running server.

    Attributes:
        pid: of the supervising `serve`; `started` is its start in kernel ticks, which tells it from a
            later process with the same number.
        url: `host:port` of gRPC.
        secret: opens the admin protocols, as the value of gRPC header `triton-grpc-protocol-admin-key`.
        repository: the model repository's path.
        shm_prefix: what the names of its shared-memory regions begin with.
    """

    pid: int
    started: int
    url: str
    secret: str
    repository: str
    shm_prefix: str

    def is_alive(self) -> bool:
        """Whether that process still runs."""
        return start_of(self.pid) == self.started

    def write(self) -> None:
        """Write it where `find_server` looks.

        Raises:
            ServingError: the runtime folder is not ours alone, or can't be written.
        """
        try:
            write_json(_path(self.url), asdict(self), mode=0o600)
        except OSError as error:
            raise ServingError(f"the server's record can't be written: {error}") from error

    def remove(self) -> None:
        """Remove the file and the shared memory that its server left."""
        with contextlib.suppress(OSError):
            for region in _SHM_DIR.glob(f"{self.shm_prefix}*"):
                region.unlink(missing_ok=True)
            path = _path(self.url)
            if _read(path) == self:
                path.unlink(missing_ok=True)


def find_server(url: str) -> ServerRecord | None:
    """The running server that this user's `serve` has at `url`, or None."""
    try:
        record = _read(_path(url))
    except ServingError:
        return None
    return record if record is not None and record.is_alive() else None


def sweep() -> None:
    """Remove the records, and the shared memory, of servers that were killed."""
    for path in runtime_dir().glob("*.json"):
        record = _read(path)
        if record is not None and not record.is_alive():
            record.remove()


def runtime_dir() -> Path:
    """The folder of the records, made where it is not there, readable by this user alone.

    Raises:
        ServingError: it can't be made, or is somebody else's.
    """
    parent = os.environ.get("XDG_RUNTIME_DIR")
    own = Path(f"/tmp/unitrain-{os.getuid()}")  # noqa: S108 - checked below
    folder = Path(parent, "unitrain") if parent and Path(parent).is_dir() else own
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise ServingError(f"the runtime folder {folder} can't be made: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ServingError(
            f"the runtime folder {folder} must be a folder of this user's with mode 0700; remove it"
        )
    return folder


def start_of(pid: int) -> int | None:
    """When a running process began, in kernel ticks since boot; None where there is none."""
    try:
        # The name in parentheses may hold anything, blanks and parentheses too.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])  # a zombie is over
    except (OSError, IndexError, ValueError):
        return None


def _path(url: str) -> Path:
    host, _, port = url.rpartition(":")
    return runtime_dir() / f"{'127.0.0.1' if host == 'localhost' else host}_{port}.json"


def _read(path: Path) -> ServerRecord | None:
    try:
        return ServerRecord(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None
