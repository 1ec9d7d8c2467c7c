"""What a running server does: its models, their versions, requests, times, memory and last errors."""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unitrain.errors import RepositoryError, ServingError, UsageError
from unitrain.repository import Repository
from unitrain.repository.layout import CANDIDATE_PREFIX
from unitrain.repository.manifest import read_manifest
from unitrain.serving.admin_client import Admin, ServerGone, tls_of
from unitrain.serving.server_registry import find_server
from unitrain.serving.triton.advisories import (
    EVERY_API,
    REACHABLE_APIS,
    advisories,
    release_of,
    release_of_version,
    text_of,
)
from unitrain.serving.triton.system_processes import group_members, memory_bytes, model_processes, started_at

_NANOSECONDS = 1e9


@dataclass(frozen=True)
class VersionStatus:
    """One version as the server knows it.

    Attributes:
        state: READY, LOADING, UNAVAILABLE, …
        reason: why it is in that state, where the server says.
        origin: the manifest's `run`, step and metric; `error` alone where it is malformed; None where there is
            none.
        requests, failures: answered and failed since it was loaded; probes and warm-up are among them.
        rows: samples in the requests.
        queue_ms, compute_ms: means of a request; None before the first.
        memory_bytes: of the processes that run it, for themselves alone; None where that can't be told.
        error: what `serve` told last of it: time, event, reason.
    """

    model: str
    version: str
    state: str
    reason: str
    origin: dict[str, Any] | None
    requests: int = 0
    failures: int = 0
    rows: int = 0
    queue_ms: float | None = None
    compute_ms: float | None = None
    memory_bytes: int | None = None
    error: dict[str, str] | None = None


@dataclass(frozen=True)
class ServerStatus:
    """A server and all that it serves; what only the machine's own `serve` knows is None at another's.

    Attributes:
        triton: its version.
        up_s: seconds since this Triton was started.
        error: what went wrong last with Triton itself.
        release: NVIDIA's release, such as `24.10`; None where it can't be told.
        advisories: known vulnerabilities that others than the server's user can reach.
    """

    url: str
    ready: bool
    triton: str
    repository: str | None
    metrics: str | None
    log: str | None
    pid: int | None
    up_s: float | None
    memory_bytes: int | None
    error: dict[str, str] | None
    versions: list[VersionStatus]
    release: str | None = None
    advisories: tuple[str, ...] = ()


def server_status(url: str, repository: Path | None = None) -> ServerStatus:
    """The state of the server at `url`.

    Args:
        repository: where the manifests lie; default: what this user's `serve` at that address serves.

    Raises:
        ServingError: there is no server, or it does not answer.
    """
    record = find_server(url)
    socket_path = Path(record.admin) if record and record.admin else None
    admin = Admin(url, tls_of(record.flags) if record else None, socket_path)
    root = repository or (Path(record.repository) if record else None)
    errors = record.errors if record else {}
    local = record is not None and record.triton_pid > 0
    memory = _memory(record.triton_pid) if record is not None and local else None
    try:
        triton = admin.server_version()
        ready = admin.is_ready()
        counted = {(row.name, row.version): row for row in admin.statistics()}
        index = admin.versions()
        versions = [
            _version(row, counted.get(row[:2]), root, memory, errors)
            for row in sorted(index, key=lambda row: (row[0], len(row[1]), row[1]))
            if not row[0].startswith(CANDIDATE_PREFIX)
        ]
    except ServerGone as error:
        raise ServingError(
            f"there is no server at {url} ({error}); start one by `python -m unitrain serve`, or name its --url"
        ) from error
    except ServingError as error:
        raise ServingError(f"{url}: the server answers otherwise than Triton does: {error}") from error
    finally:
        admin.close()
    told = {(v.model, v.version) for v in versions}
    versions += [
        VersionStatus(model, number, "NOT LOADED", "", _origin(root, model, number), error=entry)
        for name, entry in errors.items()
        for model, _, number in [name.partition(" ")]
        if model and number and (model, number) not in told
    ]
    release = release_of(record.release) if record and record.release else release_of_version(triton)
    started = started_at(record.triton_pid) if record is not None and local else None
    return ServerStatus(
        url=url,
        ready=ready,
        triton=triton,
        repository=str(root) if root else None,
        metrics=record.metrics if record else None,
        log=record.log if record else None,
        pid=record.pid if record else None,
        up_s=time.time() - started if started else None,
        memory_bytes=sum((memory or {}).values()) if local else None,
        error=errors.get(""),
        versions=sorted(versions, key=lambda v: (v.model, len(v.version), v.version)),
        release=text_of(release) if release else None,
        advisories=tuple(
            advisory.cve for advisory in advisories(release, REACHABLE_APIS if record else EVERY_API)
        ),
    )


def _version(
    row: tuple[str, str, str, str],
    counted: Any,
    root: Path | None,
    memory: dict[tuple[str, str] | None, int] | None,
    errors: dict[str, dict[str, str]],
) -> VersionStatus:
    model, version, state, reason = row
    status: dict[str, Any] = {}
    if counted is not None:
        stats = counted.inference_stats
        status = {
            "requests": stats.success.count,
            "failures": stats.fail.count,
            "rows": counted.inference_count,
            "queue_ms": _mean_ms(stats.queue),
            "compute_ms": _mean_ms(stats.compute_infer, stats.compute_input, stats.compute_output),
        }
    own = None if memory is None else memory.get((model, version))
    error = errors.get(f"{model} {version}") or errors.get(model)
    origin = _origin(root, model, version)
    return VersionStatus(
        model, version, state, " ".join(reason.split()), origin, **status, memory_bytes=own, error=error
    )


def _mean_ms(*durations: Any) -> float | None:
    count = durations[0].count
    return sum(d.ns for d in durations) / count / _NANOSECONDS * 1000 if count else None


def _origin(root: Path | None, model: str, version: str) -> dict[str, Any] | None:
    if root is None or not version.isdecimal():
        return None
    with contextlib.suppress(UsageError):
        try:
            manifest = read_manifest(Repository(root).version_dir(model, int(version)))
        except RepositoryError as error:
            return {"error": str(error)}
        if manifest is not None:
            metric = (
                {"name": manifest.metric.name, "value": manifest.metric.value} if manifest.metric else None
            )
            return {"run": manifest.run, "step": manifest.step, "weights": manifest.weights, "metric": metric}
    return None


def _memory(triton_pid: int) -> dict[tuple[str, str] | None, int]:
    """Bytes by (model, version) of the processes that run them, and under None of Triton itself."""
    models = model_processes(triton_pid)
    found: dict[tuple[str, str] | None, int] = {
        key: sum(map(memory_bytes, pids)) for key, pids in models.items()
    }
    rest = set(group_members(triton_pid)) - {pid for pids in models.values() for pid in pids}
    return found | {None: sum(map(memory_bytes, rest))}
