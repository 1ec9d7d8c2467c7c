"""`serve status`: show what a running server serves, with its requests, times, memory and errors."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unitrain.commands._parser import ArgumentParser, parse

_COLUMNS = (
    "model", "version", "state", "run", "step", "metric", "requests", "failed", "queue", "compute", "memory",
)  # fmt: skip
_RIGHT = ("version", "step", "requests", "failed", "queue", "compute", "memory")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "serve status",
        "Show what a running server serves: versions and their origin, requests, failures, times, memory, "
        "the last errors.",
        epilog="The same figures, and more, are Prometheus metrics at the printed address.",
    )
    parser.add_argument(
        "--url",
        default=None,
        metavar="HOST:PORT",
        help="gRPC address of the server; default: 127.0.0.1:8001, else this user's running `serve`",
    )
    parser.add_argument(
        "--model-repository",
        type=Path,
        default=None,
        metavar="DIR",
        help="model repository with the versions' manifests; default: the one of this user's `serve` at that address",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command; return 0 if the server answers."""
    options = parse(_parser(), argv)
    from unitrain.client.grpc_connection import check_url
    from unitrain.commands._output import (
        print_fields,
        print_json,
        print_table,
        text_of_bytes,
        text_of_duration,
    )
    from unitrain.serving.status import default_server, server_status
    from unitrain.terminal_output import note, say

    url, others = (check_url(options.url), []) if options.url is not None else default_server()
    status = server_status(url, options.model_repository)
    if others:
        note(f"this shows {url}; this user also serves at {', '.join(others)} (--url)")
    if options.json:
        print_json(asdict(status))
        return 0
    memory = status.memory_bytes
    print_fields(
        [
            ("server", f"Triton {status.triton} at {status.url}{'' if status.ready else ', not ready'}"),
            ("release", status.release),
            ("advisories", ", ".join(status.advisories) or None),
            ("up", None if status.up_s is None else text_of_duration(status.up_s)),
            ("memory", None if memory is None else text_of_bytes(memory)),
            ("repository", status.repository),
            ("metrics", f"http://{status.metrics}/metrics" if status.metrics else None),
            ("log", status.log),
        ]
    )
    print()
    if status.versions:
        print_table(_COLUMNS, [_row(version) for version in status.versions], right=_RIGHT)
    else:
        print("no model is served")
    for version in status.versions:
        wrong = (version.origin or {}).get("error")
        if wrong is not None:
            note(wrong)
    errors = {f"{v.model} {v.version}".strip(): v.error for v in status.versions} | {"Triton": status.error}
    lines = [f"{name}: {error['time']} {error['reason']}" for name, error in errors.items() if error]
    if lines:
        print("\nlast errors")
        for line in lines:
            say(line)
    return 0


def _row(version: Any) -> list[str]:
    from unitrain.commands._output import NOTHING, text_of, text_of_bytes

    origin = version.origin or {}
    metric = origin.get("metric")
    return [
        version.model,
        version.version or NOTHING,
        version.state,
        "unreadable" if "error" in origin else text_of(origin.get("run")),
        text_of(origin.get("step")),
        f"{metric['name']} {metric['value']:.4g}" if metric else NOTHING,
        str(version.requests),
        str(version.failures),
        NOTHING if version.queue_ms is None else f"{version.queue_ms:.2f} ms",
        NOTHING if version.compute_ms is None else f"{version.compute_ms:.2f} ms",
        NOTHING if version.memory_bytes is None else text_of_bytes(version.memory_bytes),
    ]
