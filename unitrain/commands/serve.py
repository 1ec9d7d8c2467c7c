"""`serve`: start Triton on a model repository and load what appears in it."""

import argparse
import ipaddress
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from unitrain.commands._parser import ArgumentParser, parse
from unitrain.errors import ServingError, UsageError

_MAX_LOGS = 10
"""Number of logs in the cache, in addition to those of running servers."""


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "serve",
        "Start Triton on a model repository, load each version that appears in it, and keep it running.",
        usage="python -m unitrain serve [status] [options] [-- FLAGS OF TRITONSERVER]",
        epilog="Arguments after `--` go to tritonserver unchanged. `serve status` shows a running server.",
    )
    parser.add_argument(
        "--install", action="store_true", help="download the Triton wheel into the cache, and exit"
    )
    parser.add_argument(
        "--model-repository",
        type=Path,
        default=Path("triton_repo"),
        metavar="DIR",
        help="folder of models, created if it is missing",
    )
    parser.add_argument(
        "--grpc-port", type=_port, default=8001, metavar="PORT", help="0: a free one, printed"
    )
    parser.add_argument(
        "--http-port",
        type=_port,
        default=None,
        metavar="PORT",
        help="with --print only: port of HTTP in the commands (not for the wheel's Triton)",
    )
    parser.add_argument(
        "--metrics-port", type=_port, default=8002, metavar="PORT", help="0: a free one, printed"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="IPv4 address to listen on; loopback only for the wheel's Triton"
    )
    parser.add_argument(
        "--container",
        choices=("docker", "apptainer"),
        default=None,
        help="run NVIDIA's container instead of a Triton of this machine",
    )
    parser.add_argument("--image", default=None, metavar="IMAGE", help="NVIDIA's image; default: 26.07")
    parser.add_argument(
        "--allow-backend",
        action="append",
        default=[],
        metavar="NAME",
        help="also load models of this backend (`python` runs any code in the repository); repeatable",
    )
    parser.add_argument(
        "--print",
        action="store_true",
        dest="show",
        help="print the plain command that serves the repository, for each way of serving, and exit",
    )
    parser.add_argument(
        "--grace",
        type=_seconds,
        default=5,
        metavar="SECONDS",
        help="time that requests in flight have to finish at the end",
    )
    parser.add_argument(
        "--log-file",
        type=Path,
        default=None,
        metavar="FILE",
        help="file for Triton's log; default: a file in the cache, one per port",
    )
    parser.add_argument("--poll", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print one JSON object a line, for programs")
    parser.add_argument(
        "--parent-pid",
        type=int,
        default=None,
        metavar="PID",
        help="stop when this parent process ends, for programs that start `serve`",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `serve` until a signal ends it; return 0 after an ordinary end."""
    if argv[:1] == ["status"]:
        from unitrain.commands import serve_status

        return serve_status.main(argv[1:])
    cut = list(argv).index("--") if "--" in argv else len(argv)
    options = parse(_parser(), argv[:cut])
    options.flags = list(argv[cut + 1 :])
    from unitrain.serving.events import Reporter

    reporter = Reporter(as_json=options.json)
    if options.install:
        _install(reporter)
        return 0
    from unitrain.serving.admin_client import tls_of
    from unitrain.serving.supervisor import Supervisor
    from unitrain.serving.triton.distribution import IMAGE, check_image, find_triton
    from unitrain.serving.triton.process import check_flags

    image = options.image or IMAGE
    check_image(image)
    _check_removed(options)
    check_flags(options.flags)
    tls_of(options.flags)
    if options.show:
        return _show(options, image)
    _check_host(options.host, options.container)
    distribution = find_triton(options.container, image)
    launch = _launch(options, distribution)
    reporter.report(
        "triton",
        f"Triton: {distribution}, because {distribution.reason}",
        way=distribution.way,
        program=str(distribution.program),
        reason=distribution.reason,
        log=str(launch.log_path),
    )
    Supervisor(launch, reporter, frozenset(options.allow_backend), parent_pid=options.parent_pid).run()
    return 0


def _check_removed(options: argparse.Namespace) -> None:
    """Refuse options of earlier releases, and name what replaces them."""
    if options.poll:
        raise UsageError(
            "serve: --poll was removed; to have Triton poll the repository itself, run the plain command that "
            "`python -m unitrain serve --print` prints"
        )
    if options.http_port is not None and not options.show:
        raise UsageError(
            "serve: --http-port is for --print only: Triton has one HTTP endpoint, which loads the models, out of "
            "reach of other users; use gRPC, or run a plain command of "
            f"`python -m unitrain serve --print --http-port {options.http_port}`"
        )


def _launch(options: argparse.Namespace, distribution: Any) -> Any:
    from unitrain.serving.triton.process import Launch, choose_ports

    repository = _repository(options.model_repository)
    ports = choose_ports(
        {"--grpc-port": options.grpc_port, "--metrics-port": options.metrics_port}, options.host
    )
    return Launch(
        distribution=distribution,
        repository=repository,
        host=options.host,
        grpc_port=ports["--grpc-port"] or 0,
        metrics_port=ports["--metrics-port"] or 0,
        log_path=_log_path(options.log_file, ports["--grpc-port"] or 0),
        grace_s=options.grace,
        flags=tuple(options.flags),
    )


def _show(options: argparse.Namespace, image: str) -> int:
    from unitrain.commands._output import print_json
    from unitrain.serving.triton.standalone_commands import plain_commands

    ways = plain_commands(
        options.model_repository.absolute(),
        ports=(options.grpc_port, options.http_port, options.metrics_port),
        host=options.host,
        image=image,
        container=options.container,
        flags=tuple(options.flags),
    )
    if options.json:
        print_json([asdict(way) for way in ways])
        return 0
    for way in ways:
        print(f"# {way.name}{', which serve would choose' if way.chosen else ''}: {way.reason}")
        print(f"{way.command or '# not here'}\n")
    return 0


def _install(reporter: Any) -> None:
    from unitrain.serving.triton import host_requirements as host
    from unitrain.serving.triton import wheel as install

    host.check_host()
    already = install.is_installed()
    if not already:
        reporter.report("installing", f"downloading {install.WHEEL} {install.WHEEL_VERSION} (55 MB)")
    folder = install.install()
    what = "is already there" if already else "is installed"
    reporter.report("installed", f"Triton {what}: {folder}", path=str(folder))


def _check_host(name: str, container: Literal["docker", "apptainer"] | None) -> None:
    from unitrain.serving.triton.advisories import FLOOR, text_of
    from unitrain.serving.triton.distribution import network_problem

    try:
        if name == "localhost" or ipaddress.IPv4Address(name).is_loopback:
            return
        problem = network_problem(container)
    except ValueError:
        problem = f"it is no IPv4 address, and {network_problem(container) or 'Triton takes no other'}"
    if problem:
        raise ServingError(
            f"--host {name}: {problem}, so it listens on loopback (127.0.0.1) only; to serve others, run "
            f"NVIDIA's container nvcr.io/nvidia/tritonserver, {text_of(FLOOR)} or newer, on the same repository "
            "(--container docker)"
        )


def _repository(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ServingError(f"--model-repository {folder} can't be created: {error.strerror}") from error
    return folder.resolve()


def _log_path(chosen: Path | None, grpc_port: int) -> Path:
    from unitrain.serving import server_registry as runtime
    from unitrain.serving.triton import wheel as install

    path = (chosen or install.cache_dir() / "logs" / f"triton-{grpc_port}.log").absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        if path.is_file():  # not a device such as /dev/null
            path.chmod(0o600)
        if chosen is None:
            running = {record.log for record in runtime.records() if record.is_alive()}
            logs = sorted(path.parent.glob("triton-*.log"), key=lambda log: log.stat().st_mtime)
            for old in logs[:-_MAX_LOGS]:
                if str(old) not in running:
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
