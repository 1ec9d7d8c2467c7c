"""One Triton process: its flags, its start and its certain end."""

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from unitrain.errors import ServingError, UsageError
from unitrain.serving.server_registry import ADMIN_NAME, records
from unitrain.serving.triton.distribution import ADMIN_DIR, CANDIDATES_DIR, MODELS_DIR, Distribution
from unitrain.serving.triton.system_processes import group_members, listener_on

_END_BYTES = 256 << 10
_REFUSED_FLAG = re.compile(r"unrecognized option|ambiguous|requires an argument")
_ERROR_LINE = re.compile(r"E\d{4} |error: |Failed |docker: |FATAL: ")
_SAYS_NOTHING = "failed to poll from model repository"
_POLL_FAILED = re.compile(r"Poll failed for model directory '([^']*)': (.*?)\"?$", re.MULTILINE)


def start_failure(log_path: Path) -> str | None:
    """Triton's words on why it did not start; None where it said nothing."""
    lines = _end_of(log_path).splitlines()
    refused = [line for line in lines if _REFUSED_FLAG.search(line)]  # before two screens of usage
    errors = [line for line in lines if _ERROR_LINE.match(line)]
    words = (refused[:1] or errors[-1:] or [""])[0]
    return f"Triton did not start: {' '.join(words.split())}" if words else None


def reason_of(log_path: Path, model: str, words: str) -> str:
    """Why a model was not loaded: the words of Triton's answer, or of its log where the answer has none."""
    if _SAYS_NOTHING not in words:
        return words
    said = [reason for name, reason in _POLL_FAILED.findall(_end_of(log_path)) if name == model]
    return said[-1] if said else words


def _end_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _END_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


LOOPBACK = "127.0.0.1"
EVERY_ADDRESS = "0.0.0.0"  # noqa: S104 - only what may face a network gets it
_ADMIN_PROTOCOLS = "shared-memory,model-repository,trace,logging"
_CLOSED = "CLOSED TO EVERYONE"
"""Name of the header that opens the admin protocols on gRPC. HTTP/2 has no header names with capitals or blanks."""
_UNSENDABLE = "\n"
"""Value of the header that opens the admin protocols on HTTP/1.1, where names are more lenient. A line can't hold it."""
_ADMIN_THREADS = 16
"""Of HTTP, where each model that is being loaded holds one."""
_UMASK = 0o077
_OWN_FLAGS = (
    "--model-repository", "--model-store", "--model-control-mode", "--load-model", "--allow-grpc",
    "--grpc-address", "--grpc-port", "--grpc-restricted-protocol", "--reuse-grpc-port", "--allow-http",
    "--http-address", "--http-port", "--reuse-http-port", "--http-restricted-api", "--http-thread-count",
    "--allow-client-shm", "--metrics-address",
    "--metrics-port", "--backend-directory", "--exit-timeout-secs", "--repository-poll-secs",
    "--allow-vertex-ai", "--allow-sagemaker", "--vertex-ai-port", "--sagemaker-port",
)  # fmt: skip
_KILLED_WITHIN_S = 3.0
_SHOWN_WORDS = 120


@dataclass(frozen=True)
class Launch:
    """What a Triton is started with.

    Attributes:
        host: the address that it listens on.
        grpc_port, metrics_port: real ports, never 0.
        http_port: as these, HTTP for clients; Triton then has none for administration. None: no HTTP on TCP.
        admin_dir: folder of this user's alone for the administration socket; None: there is no such socket.
        grace_s: seconds for the requests in flight after it was asked to end.
        shm_prefix: what the names of its shared-memory regions begin with, and a container's name.
        seen_as: another path under which Triton finds the repository; None: its own.
        candidates_dir: private second repository, in which versions are tried before they are served.
        poll: whether Triton polls the repository itself, rather than being told what to load.
        flags: the person's own, at the end.
    """

    distribution: Distribution
    repository: Path
    grpc_port: int
    metrics_port: int
    log_path: Path
    host: str = LOOPBACK
    http_port: int | None = None
    seen_as: Path | None = None
    candidates_dir: Path | None = None
    admin_dir: Path | None = None
    grace_s: int = 5
    poll: bool = False
    flags: tuple[str, ...] = ()
    shm_prefix: str = field(default_factory=lambda: f"unitrain_{os.getpid()}_{secrets.token_hex(4)}_")

    @property
    def triton_repository(self) -> Path | str:
        """The repository's path as Triton sees it."""
        return MODELS_DIR if self.distribution.container else self.seen_as or self.repository

    @property
    def near_host(self) -> str:
        """The address at which it is asked from this machine."""
        return LOOPBACK if self.host == EVERY_ADDRESS else self.host

    @property
    def admin_path(self) -> Path | None:
        """The Unix socket for administration; None where there is none: HTTP is on TCP, or there is no folder."""
        return None if self.admin_dir is None or self.http_port is not None else self.admin_dir / ADMIN_NAME

    @property
    def end_command(self) -> list[str]:
        """What ends it where its processes are not this machine's own; else empty."""
        container = self.distribution.container
        return container.end_command(self._container_name) if container else []

    def command(self) -> list[str]:
        """The command line."""
        container = self.distribution.container
        if container is None:
            flags = self._flags(self.seen_as or self.repository, self.host, self.admin_path)
            return [str(self.distribution.program), *flags]
        inside = Path(ADMIN_DIR, ADMIN_NAME) if self.admin_path else None
        ports = [port for port in (self.grpc_port, self.http_port, self.metrics_port) if port is not None]
        return container.command(
            self._flags(MODELS_DIR, container.listens_on or self.host, inside),
            repository=self.repository,
            host=self.host,
            ports=ports,
            name=self._container_name,
            candidates=self.candidates_dir,
            admin_dir=self.admin_dir if inside else None,
        )

    @property
    def _container_name(self) -> str:
        return self.shm_prefix.strip("_")

    def _flags(self, repository: Path | str, address: str, admin_path: Path | None) -> list[str]:
        flags = {
            "model-repository": repository,
            "model-control-mode": "poll" if self.poll else "explicit",
            "exit-on-error": "false",
            "strict-readiness": "false",
            "allow-http": "false",
            "grpc-address": address,
            "grpc-port": self.grpc_port,
            "grpc-restricted-protocol": f"{_ADMIN_PROTOCOLS}:{_CLOSED}=x",
            "metrics-address": address,
            "metrics-port": self.metrics_port,
            "exit-timeout-secs": self.grace_s,
        }
        if self.http_port is not None:
            flags |= {"allow-http": "true", "http-address": address, "http-port": self.http_port}
            flags |= {"http-restricted-api": f"{_ADMIN_PROTOCOLS}:{_CLOSED}={_UNSENDABLE}"}
        elif admin_path is not None:
            flags |= {"allow-http": "true", "http-address": f"unix:{admin_path}"}
            flags |= {"http-thread-count": _ADMIN_THREADS}
            if self.distribution.needs_shm_flag:
                flags["allow-client-shm"] = "true"
        if self.poll:
            flags["repository-poll-secs"] = 1
        words = [*(f"--{name}={value}" for name, value in flags.items()), "--disable-auto-complete-config"]
        if self.candidates_dir is not None:
            in_container = self.distribution.container is not None
            words.append(f"--model-repository={CANDIDATES_DIR if in_container else self.candidates_dir}")
        if self.distribution.backends_dir is not None:
            words.append(f"--backend-directory={self.distribution.backends_dir}")
            words += [
                f"--backend-config={name},shm-region-prefix-name={self.shm_prefix}"
                for name in ("python", "onnxruntime")
            ]
        return [*words, *self.flags]


def check_flags(flags: list[str]) -> None:
    """Return when none of the person's flags for tritonserver is one that keeps the server safe.

    Raises:
        UsageError: one is.
    """
    for flag in flags:
        name = flag.partition("=")[0].replace("_", "-")
        # Triton takes abbreviations.
        if name[2:] and any(own.startswith(name) for own in _OWN_FLAGS):
            raise UsageError(
                f"serve: {flag.partition('=')[0]} after `--` is set by serve itself; leave it out, or start "
                "tritonserver yourself"
            )


def choose_ports(asked: Mapping[str, int | None], host: str = LOOPBACK) -> dict[str, int | None]:
    """The ports by flag, a free one in place of 0, and each seen to be free; None stays None.

    Raises:
        ServingError: a port that was asked for is taken; it says by whom, where that can be told.
    """
    with contextlib.ExitStack() as held:
        return {
            flag: None if port is None else _bound_port(held, flag, port, host)
            for flag, port in asked.items()
        }


def _bound_port(held: contextlib.ExitStack, flag: str, port: int, host: str) -> int:
    listener = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    # As servers do: the connections of a server that has just ended do not keep its port.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        raise ServingError(
            f"{flag} {port} can't be used ({error.strerror}{_taken_by(port)}); end what listens there, or choose "
            f"another port ({flag} 0: a free one)"
        ) from error
    return int(listener.getsockname()[1])


def _taken_by(port: int) -> str:
    found = listener_on(port)
    if found is None:
        return ""
    pid, words = found
    for record in records():
        if pid in (record.pid, record.triton_pid) and record.is_alive():
            return f": by the `serve` on {record.repository}, process {record.pid}"
    shown = words if len(words) <= _SHOWN_WORDS else words[: _SHOWN_WORDS - 1] + "…"
    return f": by process {pid}, {shown}"


class TritonProcess:
    """A started Triton, in a process group of its own, that dies with this process.

    Start it in the main thread: the kernel ends it when the thread that started it ends.
    """

    def __init__(self, launch: Launch) -> None:
        launcher = [
            sys.executable,
            "-I",
            "-S",
            str(Path(__file__).with_name("parent_guard.py")),
            str(os.getpid()),
        ]
        if launch.distribution.container is None:
            launcher.append("--private-memory")
        if (
            launch.admin_path is not None
        ):  # of a Triton that was killed, which would keep the next from binding it
            launch.admin_path.unlink(missing_ok=True)
        if launch.end_command:
            launcher += ["--at-end", json.dumps(launch.end_command)]
        try:
            with launch.log_path.open("ab") as log:
                self._process = subprocess.Popen(
                    [*launcher, *launch.command()],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=launch.distribution.environment,
                    start_new_session=True,
                    umask=_UMASK,
                )
        except OSError as error:
            raise ServingError(f"{launch.distribution.program} can't be started: {error}") from error
        self._end_command = launch.end_command

    @property
    def pid(self) -> int:
        """Of tritonserver; its process group has the same number."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended, as subprocess tells it; None while it runs."""
        return self._process.poll()

    def ask_to_end(self) -> None:
        """Ask it to answer what is in flight and end."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended, after waiting for it."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """End it and all that it started, now; returns when they are gone."""
        deadline = time.monotonic() + _KILLED_WITHIN_S
        if self._end_command:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(self._end_command, capture_output=True, timeout=_KILLED_WITHIN_S, check=False)
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(self.pid, signal.SIGKILL)
                # What is a zombie is over, though the system may take its time to take it in.
                if self._process.poll() is not None and not group_members(self.pid):
                    break
                time.sleep(0.02)
        self._process.wait()
        # In a container, where this is process 1, nobody else takes in the leader's children.
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-self.pid, os.WNOHANG)[0]:
                pass
