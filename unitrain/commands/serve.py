"""`serve`: start Triton on a model repository and load what appears in it."""

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unitrain.commands.arguments import ArgumentParser, parse
from unitrain.errors import ServingError, UsageError

_LOGS_KEPT = 10
"""In the cache; one that is still written to is hardly among older ones."""


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "serve",
        "Start Triton on a model repository, load each version that appears in it, and keep it running.",
        epilog="What follows `--` goes to tritonserver as it is.",
    )
    parser.add_argument(
        "--install", action="store_true", help="fetch the Triton wheel into the cache, and end"
    )
    parser.add_argument(
        "--model-repository",
        type=Path,
        default=Path("triton_repo"),
        metavar="DIR",
        help="folder of models, made where it is not there",
    )
    parser.add_argument(
        "--grpc-port", type=_port, default=8001, metavar="PORT", help="0: a free one, printed"
    )
    parser.add_argument(
        "--http-port",
        type=_port,
        default=8000,
        metavar="PORT",
        help="taken for Triton's usual command line; HTTP itself is off in this Triton",
    )
    parser.add_argument(
        "--metrics-port", type=_port, default=8002, metavar="PORT", help="0: a free one, printed"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; loopback only")
    parser.add_argument(
        "--grace",
        type=_seconds,
        default=5,
        metavar="SECONDS",
        help="time that requests in flight have when it ends",
    )
    parser.add_argument(
        "--log-file",
        type=Path,
        default=None,
        metavar="FILE",
        help="Triton's own log; default: in the cache, one a port",
    )
    parser.add_argument(
        "--poll",
        action="store_true",
        help="have Triton poll the repository itself: slower, and a broken version blocks newer ones",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line, for programs")
    parser.add_argument("flags", nargs="*", metavar="-- FLAG", help="flags for tritonserver")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `serve` until a signal ends it; 0 is its ordinary end."""
    arguments = parse(_parser(), argv)
    from unitrain.serving.report import Reporter

    reporter = Reporter(as_json=arguments.json)
    if arguments.install:
        _install(reporter)
        return 0
    _check_host(arguments.host)
    from unitrain.serving.distribution import find_triton
    from unitrain.serving.process import Launch, check_flags, choose_ports
    from unitrain.serving.supervisor import Supervisor

    check_flags(arguments.flags)
    distribution = find_triton()
    repository = _repository(arguments.model_repository)
    grpc_port, metrics_port = choose_ports(arguments.grpc_port, arguments.metrics_port)
    launch = Launch(
        distribution=distribution,
        repository=repository,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        log_path=_log_path(arguments.log_file, grpc_port),
        grace_s=arguments.grace,
        poll=arguments.poll,
        flags=tuple(arguments.flags),
    )
    Supervisor(launch, reporter).run()
    return 0


def _install(reporter: Any) -> None:
    from unitrain.serving import host, install

    host.check_host()
    already = install.is_installed()
    if not already:
        reporter.tell("installing", f"fetching {install.WHEEL} {install.WHEEL_VERSION} (55 MB)")
    folder = install.install()
    what = "is already there" if already else "is installed"
    reporter.tell("installed", f"Triton {what}: {folder}", path=str(folder))


def _check_host(name: str) -> None:
    try:
        loopback = name == "localhost" or ipaddress.IPv4Address(name).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ServingError(
            f"--host {name}: this Triton is older than the security fixes of 25.07 and listens on loopback "
            "(127.0.0.1) only; to serve others, run NVIDIA's container nvcr.io/nvidia/tritonserver, 25.07 or "
            "newer, on the same repository"
        )


def _repository(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ServingError(f"--model-repository {folder} can't be made: {error.strerror}") from error
    return folder.resolve()


def _log_path(asked: Path | None, grpc_port: int) -> Path:
    from unitrain.serving import install

    path = (asked or install.cache_dir() / "logs" / f"triton-{grpc_port}.log").absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        path.chmod(0o600)
        if asked is None:
            logs = sorted(path.parent.glob("triton-*.log"), key=lambda log: log.stat().st_mtime)
            for old in logs[:-_LOGS_KEPT]:
                old.unlink(missing_ok=True)
    except OSError as error:
        raise ServingError(f"Triton's log {path} can't be written: {error.strerror}") from error
    return path


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:  # noqa: PLR2004 - the largest port
        raise UsageError(f"serve: a port is a whole number from 0 to 65535, got {text}")
    return int(text)


def _seconds(text: str) -> int:
    if not text.isdecimal():
        raise UsageError(f"serve: --grace is a whole number of seconds, got {text}")
    return int(text)
