"""Requests of a stream: its options, its retry policy, the requests in flight, and their results."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from unitrain.client.grpc_connection import Connection
from unitrain.client.input_validation import Array, one_row, row_views
from unitrain.client.metadata import ModelInfo
from unitrain.client.streaming.batcher import Item
from unitrain.errors import ClientError

_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 0.05, 2.0

_REPLACED_AFTER_S = 3.0
"""Seconds for which other versions must be served instead of the requested one, until it counts as replaced.
A restarted server has all its versions sooner."""

_METADATA_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class StreamOptions:
    """Options of a stream.

    Attributes:
        batch_rows: maximum number of rows in a request; None: the rows read within 2 ms, up to the server's limit.
        window: maximum number of requests in flight.
        timeout_s: seconds for the answer to one request, from its sending.
        retry_for_s: seconds for which the server or model may be away before the stream gives up.
        allow_nan: send NaN rather than refuse it.
        stop: event that ends the stream: no more samples are read, and requests in flight are answered.
        first_index: index of the first sample.
        shared_memory: exchange tensors by memory shared with a server on this host.
    """

    batch_rows: int | None = None
    window: int = 16
    timeout_s: float = 30.0
    retry_for_s: float = 60.0
    allow_nan: bool = False
    stop: threading.Event | None = None
    first_index: int = 0
    shared_memory: bool = False


@dataclass(slots=True)
class Result:
    """One sample's answer, or its error.

    Attributes:
        index: place of the sample in the source, from 0.
        outputs: arrays by name, with a batch axis if the sample came with one; None on an error.
        version: model version that answered; 0 on an error.
        latency_ms: milliseconds from the first sending of the sample's request to its answer; 0 if it was never sent.
        error: reason for missing outputs; None if there are outputs.

    Example:
        >>> import numpy as np
        >>> result = Result(0, {"y": np.array([2.0])}, version=1, latency_ms=0.8, error=None)
        >>> result.outputs["y"], result.version
        (array([2.]), 1)
    """

    index: int
    outputs: dict[str, Array] | None
    version: int
    latency_ms: float
    error: ClientError | None


class RetryPolicy:
    """Exponential backoff after transient failures, up to a limit.

    Args:
        model: model that is queried.
        retry_for_s: seconds after the first failure at which the stream gives up.

    Attributes:
        retry_at_s: monotonic time before which nothing is sent.
    """

    def __init__(self, model: ModelInfo, retry_for_s: float) -> None:
        self._model = model
        self._retry_for_s = retry_for_s
        self._backoff_s = _FIRST_BACKOFF_S
        self._failing_since_s: float | None = None
        self._replaced_since_s: float | None = None
        self.retry_at_s = 0.0

    def succeeded(self) -> None:
        """Reset the backoff: the model answers."""
        self._failing_since_s = self._replaced_since_s = None
        self._backoff_s = _FIRST_BACKOFF_S

    def failed(self, reason: str) -> str | None:
        """Schedule the next attempt; return an error message if there is none."""
        now_s = time.monotonic()
        if now_s < self.retry_at_s:
            return None  # one backoff for all requests that failed together
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        waited_s = now_s - self._failing_since_s
        if waited_s >= self._retry_for_s:
            return f"{self._model.url}: gave up after {self._retry_for_s:g} s (--retry-for): {reason}"
        replaced = self._version_replaced(now_s)
        if replaced is not None:
            return replaced
        self.retry_at_s = now_s + min(self._backoff_s, self._retry_for_s - waited_s)
        self._backoff_s = min(2 * self._backoff_s, _MAX_BACKOFF_S)
        return None

    def _version_replaced(self, now_s: float) -> str | None:
        """Return an error message if other versions have been served instead of the requested one for long."""
        if self._model.version is None:
            return None
        try:
            with Connection(self._model.url) as connection:
                versions = connection.served(_METADATA_TIMEOUT_S).get(self._model.name, [])
        except ClientError:
            versions = []
        if not versions or self._model.version in versions:
            self._replaced_since_s = None
            return None
        self._replaced_since_s = self._replaced_since_s or now_s
        if now_s - self._replaced_since_s < _REPLACED_AFTER_S:
            return None
        return (
            f"{self._model.url}: model {self._model.name} has no version {self._model.version} any more; "
            f"it has {', '.join(map(str, versions))}"
        )


class Request:
    """Items that are sent together. A refused request is split into two halves.

    Attributes:
        items: samples of the request, in order.
        message: serialized message; the message itself if its tensors are in shared memory.
        number: id that the answer repeats.
        slot: slot of shared memory, if it has one.
        first_sent_s, sent_s: monotonic times of the first and the latest sending; 0 if it was never sent.
        outputs: arrays by name, [rows, *dims], of the items without an error.
        error: error of all items without outputs.
        version: model version that answered.
        latency_ms: milliseconds from the first sending to the answer.
        halves: requests that replace this one.
    """

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
        self.message: Any = None
        self.number = 0
        self.slot: int | None = None
        self.first_sent_s = self.sent_s = 0.0
        self.outputs: dict[str, Array] | None = None
        self.error: ClientError | None = None
        self.version = 0
        self.latency_ms = 0.0
        self.halves: list[Request] = []

    def done(self) -> bool:
        """Return True if every item has its answer or error."""
        if self.halves:
            return all(half.done() for half in self.halves)
        return self.outputs is not None or self.error is not None

    def results(self) -> Iterator[Result]:
        """Yield one result an item, in order."""
        if self.halves:
            for half in self.halves:
                yield from half.results()
        elif self.outputs is None:
            for item in self.items:
                yield Result(item.index, None, 0, self.latency_ms, item.error or self.error)
        elif self.items[0].unbatched:
            yield Result(self.items[0].index, self.outputs, self.version, self.latency_ms, None)
        else:
            yield from self._split_outputs(self.outputs)

    def _split_outputs(self, outputs: dict[str, Array]) -> Iterator[Result]:
        """Yield each item's rows of the outputs as its result."""
        version, latency_ms = self.version, self.latency_ms
        if len(self.items) > 1 and all(item.single and item.error is None for item in self.items):
            # The fast path, which nearly all rows take.
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
