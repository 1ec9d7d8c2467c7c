"""The plain command that serves a repository without unitrain, for each way that there is."""

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
    """One way to serve.

    Attributes:
        name: native, wheel, docker or apptainer.
        chosen: whether `serve` would take it.
        reason: why it would, or why it can't or does not.
        command: what a shell takes; None where it can't be told here.
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
    """Every way, in the order in which `serve` looks for them; Triton polls the repository itself in each.

    Args:
        ports: of gRPC, HTTP (None: off) and metrics; 0 becomes Triton's default.
        container: as it would be given to `find_triton`.
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
        return this_machine.this_host().problem() or missing or problem or "something else comes first"
    program = "tritonserver" if name == "native" else name
    if shutil.which(program) is None:
        return f"no `{program}` on PATH here"
    return "something else was asked for" if name == "native" else f"only with --container {name}"


def _in_shell(distribution: Distribution, words: list[str]) -> str:
    changed = {key: value for key, value in distribution.environment.items() if os.environ.get(key) != value}
    unset = [name for name in os.environ if name not in distribution.environment]
    prefix = [f"-u{name}" for name in unset] + [f"{key}={value}" for key, value in changed.items()]
    return shlex.join([*(["env", *prefix] if prefix else []), *words])
