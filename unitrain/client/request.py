"""What a stream handles: its options, the requests on their way, and the results they end in."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from unitrain.client.arrays import Array, one_row, row_views
from unitrain.client.intake import Item
from unitrain.errors import ClientError


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
