"""Statistics of a stream in constant memory: counts, rate, latencies, versions, errors."""

import math
import time
from collections import Counter, deque
from typing import Any

from unitrain.client.streaming.requests import Result
from unitrain.errors import ClientError, DataError, RequestError
from unitrain.terminal_output import printable

_LOG_STEP = math.log(1.01)
"""Latencies are counted in logarithmic steps of one per cent."""

_MAX_CHANGES = 1000
_MAX_SHOWN_CHANGES = 10
"""Newest changes of version that are kept, for JSON, and that the table shows."""


class StreamStatistics:
    """Count results, and summarize them as a table or JSON.

    Attributes:
        first_error: error of the first failed sample.
        checks: further lines of the report, by name, for example `golden`.
        samples: number of results, failed ones included.

    Example:
        >>> statistics = StreamStatistics()
        >>> statistics.count(Result(0, {}, version=3, latency_ms=1.5, error=None))
        >>> statistics.samples, statistics.failed, statistics.to_json()["versions"]
        (1, 0, {'3': 1})
    """

    def __init__(self) -> None:
        self.first_error: ClientError | None = None
        self.checks: dict[str, Any] = {}
        self.samples = 0
        self._start_s = time.monotonic()
        self._end_s: float | None = None
        self._errors: Counter[str] = Counter()
        self._versions: Counter[int] = Counter()
        self._changes: deque[tuple[float, int]] = deque(maxlen=_MAX_CHANGES)  # seconds, version
        self._latencies: Counter[int] = Counter()
        self._last_latency: tuple[float, int] = (0.0, 0)  # milliseconds and step, shared by a request's rows
        self._version = 0

    def count(self, result: Result) -> None:
        """Count one more result."""
        self.samples += 1
        if result.error is not None:
            self._errors[error_kind(result.error)] += 1
            self.first_error = self.first_error or result.error
            return
        self._versions[result.version] += 1
        if result.version != self._version:
            self._version = result.version
            self._changes.append((time.monotonic() - self._start_s, result.version))
        if result.latency_ms != self._last_latency[0]:
            step = round(math.log(max(result.latency_ms, 1e-6)) / _LOG_STEP)
            self._last_latency = result.latency_ms, step
        self._latencies[self._last_latency[1]] += 1

    def end(self) -> None:
        """Stop the clock."""
        self._end_s = time.monotonic()

    @property
    def failed(self) -> int:
        """Number of samples without an answer."""
        return self._errors.total()

    @property
    def seconds(self) -> float:
        """Seconds from the start to the end, or until now."""
        return (self._end_s or time.monotonic()) - self._start_s

    def latency_ms(self, share: float) -> float | None:
        """Return a quantile of the latencies, with an error of one per cent; None without answers.

        Args:
            share: share of the answered samples with at most this latency, from 0 to 1.
        """
        wanted, seen = share * self._latencies.total(), 0
        for step, count in sorted(self._latencies.items()):
            seen += count
            if seen >= wanted:
                return math.exp(step * _LOG_STEP)
        return None

    def to_json(self) -> dict[str, Any]:
        """Return all statistics as plain values; the names of times end with their unit."""
        shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
        latencies = {name: self.latency_ms(share) for name, share in shares.items()}
        return {
            "samples": self.samples,
            "answered": self.samples - self.failed,
            "seconds": round(self.seconds, 4),
            "samples_per_s": round(self.samples / max(self.seconds, 1e-9), 1),
            "latency_ms": {name: value and round(value, 3) for name, value in latencies.items()},
            "versions": {str(version): count for version, count in sorted(self._versions.items())},
            "version_changes": [{"after_s": round(s, 3), "version": v} for s, v in self._changes],
            "errors": dict(sorted(self._errors.items())),
            "first_error": str(self.first_error) if self.first_error else None,
        } | self.checks

    def table(self) -> str:
        """Return all statistics as a small table of plain text."""
        data = self.to_json()
        latencies = [f"{n} {v:.2f} ms" for n, v in data["latency_ms"].items() if v is not None]
        changes = [f"{c['version']} after {c['after_s']:.2f} s" for c in data["version_changes"]]
        if len(changes) > _MAX_SHOWN_CHANGES:
            changes = ["…", *changes[-_MAX_SHOWN_CHANGES:]]
        versions = ", ".join(f"{version} ({count})" for version, count in data["versions"].items())
        errors = ", ".join(f"{kind} ({count})" for kind, count in data["errors"].items())
        rows = [
            ("samples", f"{data['samples']} in {self.seconds:.2f} s"),
            ("samples/s", f"{data['samples_per_s']:,.1f}"),
            ("latency", ", ".join(latencies) or "-"),
            ("versions", versions or "-"),
            *([("changes", ", ".join(changes))] if len(changes) > 1 else []),
            ("errors", errors or "0"),
            *((name, str(value)) for name, value in self.checks.items()),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {printable(value)}" for name, value in rows)


def error_kind(error: ClientError) -> str:
    """Return an error's kind: data, refused, deadline, unavailable, stopped or client."""
    if isinstance(error, RequestError):
        return error.kind
    return "data" if isinstance(error, DataError) else "client"
