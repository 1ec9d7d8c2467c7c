"""Triton as a process: its flags and ports, its start and end, and the reasons for failures in its log."""

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

LOOPBACK = "127.0.0.1"
EVERY_ADDRESS = "0.0.0.0"  # noqa: S104 - only what may face a network gets it
_ADMIN_PROTOCOLS = "shared-memory,model-repository,trace,logging"
_CLOSED = "CLOSED TO EVERYONE"
"""Name of the header that opens the admin protocols on gRPC. HTTP/2 allows no capitals or blanks in header names."""
_UNSENDABLE = "\n"
"""Value of the header that opens the admin protocols on HTTP/1.1, which allows more names. No header can contain it."""
_ADMIN_THREADS = 16
"""Threads of Triton's HTTP server; each load of a model occupies one."""
_UMASK = 0o077
_OWN_FLAGS = (
    "--model-repository", "--model-store", "--model-control-mode", "--load-model", "--allow-grpc",
    "--grpc-address", "--grpc-port", "--grpc-restricted-protocol", "--reuse-grpc-port", "--allow-http",
    "--http-address", "--http-port", "--reuse-http-port", "--http-restricted-api", "--http-thread-count",
    "--allow-client-shm", "--metrics-address",
    "--metrics-port", "--backend-directory", "--exit-timeout-secs", "--repository-poll-secs",
    "--allow-vertex-ai", "--allow-sagemaker", "--vertex-ai-port", "--sagemaker-port",
)  # fmt: skip
_KILL_TIMEOUT_S = 3.0
_MAX_TEXT = 120
"""Characters of a command line that a message quotes."""
_LOG_BYTES = 256 << 10
"""Size of the log's end that is searched."""
_REFUSED_FLAG = re.compile(r"unrecognized option|ambiguous|requires an argument")
_ERROR_LINE = re.compile(r"E\d{4} |error: |Failed |docker: |FATAL: ")
_UNEXPLAINED = "failed to poll from model repository"
"""Triton's answer that gives no reason; its log has one."""
_POLL_FAILED = re.compile(r"Poll failed for model directory '([^']*)': (.*?)\"?$", re.MULTILINE)


@dataclass(frozen=True)
class Launch:
    """Settings of a Triton's start.

    Attributes:
        host: address on which Triton listens.
        grpc_port, metrics_port: port numbers, never 0.
        http_port: port of HTTP for clients, for printed commands; Triton then has no administration socket. None:
            no HTTP on TCP.
        admin_dir: private folder for the administration socket; None: there is no such socket.
        grace_s: seconds that requests in flight have after a signal to end.
        shm_prefix: prefix of the names of its shared-memory regions; also the name of a container.
        seen_as: another path to the repository, for Triton; None: its own path.
        candidates_dir: private second repository, in which versions are verified before they are served.
        poll: whether Triton polls the repository itself, for printed commands.
        flags: further flags for tritonserver, from the user.
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
        """Path of the repository as Triton sees it."""
        return MODELS_DIR if self.distribution.container else self.seen_as or self.repository

    @property
    def near_host(self) -> str:
        """Address of the server for clients on this machine."""
        return LOOPBACK if self.host == EVERY_ADDRESS else self.host

    @property
    def admin_path(self) -> Path | None:
        """Unix socket for administration; None without a folder for it, or with HTTP on TCP."""
        return None if self.admin_dir is None or self.http_port is not None else self.admin_dir / ADMIN_NAME

    @property
    def end_command(self) -> list[str]:
        """Command that ends a container; empty if Triton runs without one."""
        container = self.distribution.container
        return container.end_command(self._container_name) if container else []

    def command(self) -> list[str]:
        """Return the command line."""
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
    """Refuse flags for tritonserver that would undo what keeps the server safe.

    Raises:
        UsageError: there is one.
    """
    for flag in flags:
        name = flag.partition("=")[0].replace("_", "-")
        # Triton takes abbreviations.
        if name[2:] and any(own.startswith(name) for own in _OWN_FLAGS):
            raise UsageError(
                f"serve: {flag.partition('=')[0]} after `--` is set by serve itself; remove it, or start "
                "tritonserver yourself"
            )


def choose_ports(ports: Mapping[str, int | None], host: str = LOOPBACK) -> dict[str, int | None]:
    """Return the ports by flag, with a free one in place of 0; None stays None.

    Raises:
        ServingError: a port is in use; the message names the process if it is known.
    """
    with contextlib.ExitStack() as held:
        return {
            flag: None if port is None else _bound_port(held, flag, port, host)
            for flag, port in ports.items()
        }


def _bound_port(held: contextlib.ExitStack, flag: str, port: int, host: str) -> int:
    listener = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    # As servers do: connections of a server that has just ended do not block its port.
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
    shown = words if len(words) <= _MAX_TEXT else words[: _MAX_TEXT - 1] + "…"
    return f": by process {pid}, {shown}"


class TritonProcess:
    """A running Triton in its own process group; it ends with this process.

    Start it in the main thread: the kernel ends it when the thread that started it ends.

    Args:
        launch: settings of the start.
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
        if launch.admin_path is not None:  # a socket that a killed Triton left can't be bound again
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
        """Process id of tritonserver; its process group has the same number."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def terminate(self) -> None:
        """Send the signal to answer requests in flight and end."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; return whether it has ended."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """Kill it and the processes that it started; return when they have ended."""
        deadline = time.monotonic() + _KILL_TIMEOUT_S
        if self._end_command:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(self._end_command, capture_output=True, timeout=_KILL_TIMEOUT_S, check=False)
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(self.pid, signal.SIGKILL)
                # A zombie has ended, though the system may take some time to remove it.
                if self._process.poll() is not None and not group_members(self.pid):
                    break
                time.sleep(0.02)
        self._process.wait()
        # In a container, where this is process 1, no other process removes the leader's children.
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-self.pid, os.WNOHANG)[0]:
                pass


def start_failure(log_path: Path) -> str | None:
    """Return Triton's words on why it did not start; None if its log has none."""
    lines = _end_of(log_path).splitlines()
    refused = [line for line in lines if _REFUSED_FLAG.search(line)]  # before two screens of usage
    errors = [line for line in lines if _ERROR_LINE.match(line)]
    words = (refused[:1] or errors[-1:] or [""])[0]
    return f"Triton did not start: {' '.join(words.split())}" if words else None


def failure_reason(log_path: Path, model: str, words: str) -> str:
    """Return why a model was not loaded: the words of Triton's answer, or those of its log if they explain more."""
    if _UNEXPLAINED not in words:
        return words
    reasons = [reason for name, reason in _POLL_FAILED.findall(_end_of(log_path)) if name == model]
    return reasons[-1] if reasons else words


def _end_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
