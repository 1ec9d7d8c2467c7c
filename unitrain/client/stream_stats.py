"""What a stream came to: counts, rate, latencies, versions, errors; in memory that does not grow."""

import math
import time
from collections import Counter, deque
from typing import Any

from unitrain.client.streaming.requests import Result
from unitrain.errors import ClientError, DataError, RequestError
from unitrain.terminal_output import printable

_RESOLUTION = math.log(1.01)
"""Latencies are counted in steps of one per cent."""

_SHOWN_CHANGES = 10
"""Of version, the newest, in the table; JSON has the last thousand."""


class Report:
    """Counts results as they come.

    Attributes:
        first_error: the first failed sample's.
        checks: further lines of the report, by name (`golden`, say).
    """

    def __init__(self) -> None:
        self.first_error: ClientError | None = None
        self.checks: dict[str, Any] = {}
        self.samples = 0
        self._start_s = time.monotonic()
        self._end_s: float | None = None
        self._errors: Counter[str] = Counter()
        self._versions: Counter[int] = Counter()
        self._changes: deque[tuple[float, int]] = deque(maxlen=1000)  # the newest
        self._latencies: Counter[int] = Counter()
        self._last: tuple[float, int] = (0.0, 0)  # rows of a request have one latency: its step is found once
        self._version = 0

    def count(self, result: Result) -> None:
        """Take one more result."""
        self.samples += 1
        if result.error is not None:
            self._errors[error_kind(result.error)] += 1
            self.first_error = self.first_error or result.error
            return
        self._versions[result.version] += 1
        if result.version != self._version:
            self._version = result.version
            self._changes.append((time.monotonic() - self._start_s, result.version))
        if result.latency_ms != self._last[0]:
            self._last = result.latency_ms, round(math.log(max(result.latency_ms, 1e-6)) / _RESOLUTION)
        self._latencies[self._last[1]] += 1

    def end(self) -> None:
        """Stop the clock."""
        self._end_s = time.monotonic()

    @property
    def failed(self) -> int:
        """Samples without an answer."""
        return self._errors.total()

    @property
    def seconds(self) -> float:
        """From the start to the end, or to now."""
        return (self._end_s or time.monotonic()) - self._start_s

    def latency_ms(self, share: float) -> float | None:
        """The latency that `share` of the answered samples stayed under, to one per cent; None without any."""
        wanted, seen = share * self._latencies.total(), 0
        for step, count in sorted(self._latencies.items()):
            seen += count
            if seen >= wanted:
                return math.exp(step * _RESOLUTION)
        return None

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values; times in seconds and milliseconds."""
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
        """All of it as a small plain table."""
        data = self.to_json()
        latencies = [f"{n} {v:.2f} ms" for n, v in data["latency_ms"].items() if v is not None]
        changes = [f"{c['version']} after {c['after_s']:.2f} s" for c in data["version_changes"]]
        if len(changes) > _SHOWN_CHANGES:
            changes = ["…", *changes[-_SHOWN_CHANGES:]]
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
    """The word that an error is counted under: data, refused, deadline, unavailable, stopped or client."""
    if isinstance(error, RequestError):
        return error.kind
    return "data" if isinstance(error, DataError) else "client"
