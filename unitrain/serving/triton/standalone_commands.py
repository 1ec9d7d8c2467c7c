"""Plain shell commands that serve a repository without unitrain, one for each way of serving."""

import os
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from unitrain.errors import ServingError
from unitrain.serving.triton import host_requirements as this_machine
from unitrain.serving.triton import wheel as install
from unitrain.serving.triton.distribution import (
    Container,
    Distribution,
    Runtime,
    find_triton,
    wheel_distribution,
)
from unitrain.serving.triton.process import Launch

_DEFAULT_PORTS = (8001, 8000, 8002)


@dataclass(frozen=True)
class Way:
    """One way of serving.

    Attributes:
        name: native, wheel, docker or apptainer.
        chosen: True if `serve` would choose it.
        reason: reason why `serve` would choose it, or would not.
        command: shell command; None if it is unknown here.
    """

    name: str
    chosen: bool
    reason: str
    command: str | None


def plain_commands(
    repository: Path,
    *,
    ports: tuple[int, int | None, int],
    host: str,
    image: str,
    container: Runtime | None = None,
    flags: tuple[str, ...] = (),
) -> list[Way]:
    """Return every way, in the order in which `serve` searches; in each Triton polls the repository itself.

    Args:
        repository: path of the model repository.
        ports: port numbers of gRPC, HTTP (None: off) and metrics; 0 becomes Triton's default.
        host: address on which Triton listens.
        image: name of the container image.
        container: container runtime that the user named; None: none.
        flags: further flags for tritonserver.
    """
    try:
        found: Distribution | None = find_triton(container, image)
        problem = ""
    except ServingError as error:
        found, problem = None, str(error)
    grpc, http, metrics = (
        default if port == 0 else port for port, default in zip(ports, _DEFAULT_PORTS, strict=True)
    )

    def command(distribution: Distribution) -> str:
        launch = Launch(
            distribution,
            repository,
            grpc_port=grpc or 0,
            metrics_port=metrics or 0,
            http_port=None if distribution.way == "wheel" else http,
            host=host,
            log_path=Path(os.devnull),
            poll=True,
            flags=flags,
        )
        return _in_shell(distribution, launch.command())

    native = shutil.which("tritonserver")
    distributions = {
        "native": Distribution(Path(native or "tritonserver"), "", native=True),
        "wheel": _wheel(),
        **{
            runtime: Distribution(
                Path(shutil.which(runtime) or runtime), "", native=True,
                container=Container(runtime, Path(shutil.which(runtime) or runtime), image),
            )
            for runtime in ("docker", "apptainer")
        },
    }  # fmt: skip
    return [
        Way(
            name,
            chosen=found is not None and found.way == name,
            reason=found.reason if found is not None and found.way == name else _why_not(name, problem),
            command=None if distribution is None else command(distribution),
        )
        for name, distribution in distributions.items()
    ]


def _wheel() -> Distribution | None:
    able = this_machine.this_host().problem() is None and install.is_installed()
    return wheel_distribution() if able else None


def _why_not(name: str, problem: str) -> str:
    if name == "wheel":
        missing = "" if install.is_installed() else "not installed: python -m unitrain serve --install"
        return this_machine.this_host().problem() or missing or problem or "another way comes first"
    program = "tritonserver" if name == "native" else name
    if shutil.which(program) is None:
        return f"no `{program}` on PATH here"
    return "another way was chosen" if name == "native" else f"only with --container {name}"


def _in_shell(distribution: Distribution, words: list[str]) -> str:
    changed = {key: value for key, value in distribution.environment.items() if os.environ.get(key) != value}
    unset = [name for name in os.environ if name not in distribution.environment]
    prefix = [f"-u{name}" for name in unset] + [f"{key}={value}" for key, value in changed.items()]
    return shlex.join([*(["env", *prefix] if prefix else []), *words])
