"""What a stream handles: its options, the requests on their way, and the results they end in."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from unitrain.client.connection import Connection
from unitrain.client.input_validation import Array, one_row, row_views
from unitrain.client.metadata import ModelInfo
from unitrain.client.streaming.batcher import Item
from unitrain.errors import ClientError

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0
"""Between attempts; doubled each time."""

_GONE_AFTER_S = 3.0
"""A version that is asked for is given up when others have been served in its stead for so long: a server
that was restarted has all its versions sooner than that."""

_ASK_TIMEOUT_S = 1.0


class Patience:
    """When to try again after a failure that passes, and when to give up.

    Attributes:
        resume_at_s: of the monotonic clock: nothing is to be tried before.
    """

    def __init__(self, model: ModelInfo, retry_for_s: float) -> None:
        self._model = model
        self._retry_for_s = retry_for_s
        self._pause_s = _FIRST_PAUSE_S
        self._since_s: float | None = None
        self._replaced_since_s: float | None = None
        self.resume_at_s = 0.0

    def answered(self) -> None:
        """Begin anew: the model answers."""
        self._since_s = self._replaced_since_s = None
        self._pause_s = _FIRST_PAUSE_S

    def failed(self, why: str) -> str | None:
        """Plan the next attempt; where there is to be none, the sentence that says why."""
        now = time.monotonic()
        if now < self.resume_at_s:
            return None  # one pause for all that failed together
        if self._since_s is None:
            self._since_s = now
        waited_s = now - self._since_s
        if waited_s >= self._retry_for_s:
            return f"{self._model.url}: gave up after {self._retry_for_s:g} s (--retry-for): {why}"
        others = self._replaced_by(now)
        if others is not None:
            return others
        self.resume_at_s = now + min(self._pause_s, self._retry_for_s - waited_s)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return None

    def _replaced_by(self, now: float) -> str | None:
        """That the version asked for is no longer served while others are, once this has lasted."""
        if self._model.version is None:
            return None
        try:
            with Connection(self._model.url) as connection:
                versions = connection.served(_ASK_TIMEOUT_S).get(self._model.name, [])
        except ClientError:
            versions = []
        if not versions or self._model.version in versions:
            self._replaced_since_s = None
            return None
        self._replaced_since_s = self._replaced_since_s or now
        if now - self._replaced_since_s < _GONE_AFTER_S:
            return None
        return (
            f"{self._model.url}: model {self._model.name} has no version {self._model.version} any more; "
            f"it has {', '.join(map(str, versions))}"
        )


@dataclass(slots=True)
class Result:
    """One sample's answer, or its error.

    Attributes:
        index: the sample's place in the source, from 0.
        outputs: by name, shaped as the sample came (with or without a batch axis); None on an error.
        version: that answered; 0 on an error.
        latency_ms: from the first sending of the sample's request to its answer; 0 where it was never sent.
        error: why there are no outputs.
    """

    index: int
    outputs: dict[str, Array] | None
    version: int
    latency_ms: float
    error: ClientError | None


@dataclass(frozen=True)
class StreamOptions:
    """How a stream behaves.

    Attributes:
        batch_rows: rows a request at most; None: what is at hand within a short linger, up to the server's limit.
        window: requests in flight at most.
        timeout_s: for an answer to one request, from its sending.
        retry_for_s: how long a server or model may be away before the stream gives up.
        allow_nan: send NaN rather than refuse it.
        stop: when set, nothing more is taken from the source, and the stream ends with what is in flight.
        first_index: of the first sample.
        shared_memory: send and receive tensors by memory shared with a server on this host.
    """

    batch_rows: int | None = None
    window: int = 16
    timeout_s: float = 30.0
    retry_for_s: float = 60.0
    allow_nan: bool = False
    stop: threading.Event | None = None
    first_index: int = 0
    shared_memory: bool = False


class Request:
    """Some items' rows on their way; after a refusal, the two halves that were sent in its stead."""

    __slots__ = (
        "error",
        "first_sent_s",
        "halves",
        "items",
        "latency_ms",
        "message",
        "number",
        "outputs",
        "sent_s",
        "slot",
        "version",
    )

    def __init__(self, items: list[Item]) -> None:
        self.items = items
        self.message: Any = None  # serialised; where its tensors are in shared memory, the message itself
        self.number = 0  # what the answer will name
        self.slot: int | None = None  # of shared memory
        self.first_sent_s = self.sent_s = 0.0
        self.outputs: dict[str, Array] | None = None
        self.error: ClientError | None = None
        self.version = 0
        self.latency_ms = 0.0
        self.halves: list[Request] = []

    def done(self) -> bool:
        """Whether every item has its answer or error."""
        if self.halves:
            return all(half.done() for half in self.halves)
        return self.outputs is not None or self.error is not None

    def results(self) -> Iterator[Result]:
        """One result an item, in order."""
        if self.halves:
            for half in self.halves:
                yield from half.results()
        elif self.outputs is None:
            for item in self.items:
                yield Result(item.index, None, 0, self.latency_ms, item.error or self.error)
        elif self.items[0].whole:
            yield Result(self.items[0].index, self.outputs, self.version, self.latency_ms, None)
        else:
            yield from self._slices(self.outputs)

    def _slices(self, outputs: dict[str, Array]) -> Iterator[Result]:
        version, latency_ms = self.version, self.latency_ms
        if len(self.items) > 1 and all(item.single and item.error is None for item in self.items):
            # The way of nearly all rows, so the cheapest one.
            if len(outputs) == 1:
                ((name, rows),) = outputs.items()
                for item, each in zip(self.items, row_views(rows), strict=True):
                    yield Result(item.index, {name: each}, version, latency_ms, None)
                return
            for item, *row in zip(self.items, *map(row_views, outputs.values()), strict=True):
                yield Result(item.index, dict(zip(outputs, row, strict=True)), version, latency_ms, None)
            return
        start = 0
        for item in self.items:
            if item.error is not None:
                yield Result(item.index, None, 0, 0.0, item.error)
                continue
            stop = start + item.rows
            part = {n: one_row(a, start) if item.single else a[start:stop] for n, a in outputs.items()}
            start = stop
            yield Result(item.index, part, version, latency_ms, None)
