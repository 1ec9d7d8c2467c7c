"""One bidirectional gRPC stream: requests go out in order, what comes back is put into a queue."""

import threading
import time
from queue import SimpleQueue
from typing import Any, NamedTuple

from unitrain.client.connection import Connection


class Event(NamedTuple):
    """What a link has to tell: an answer, or that it has ended.

    Attributes:
        link: which told it.
        response: a ModelStreamInferResponse message, or None when the stream has ended.
        ending: gRPC's error that ended it, or None where the server ended it in good order.
        time_s: when it arrived, of the monotonic clock.
    """

    link: "Link"
    response: Any
    ending: Any
    time_s: float


class Link:
    """A live stream to a server; it ends once and is then done with."""

    def __init__(self, connection: Connection, events: "SimpleQueue[Event | None]") -> None:
        self._connection = connection
        self._events = events
        self._outgoing: SimpleQueue[Any] = SimpleQueue()
        self._call = connection.stream(iter(self._outgoing.get, None))
        threading.Thread(target=self._receive, name="unitrain-link", daemon=True).start()

    def send(self, request: bytes) -> None:
        """Queue a serialised ModelInferRequest for sending."""
        self._outgoing.put(request)

    def close(self) -> None:
        """End it at once, answered or not."""
        self._outgoing.put(None)
        self._call.cancel()
        self._connection.close()

    def _receive(self) -> None:
        import grpc

        ending = None
        try:
            for response in self._call:
                self._events.put(Event(self, response, None, time.monotonic()))
        except grpc.RpcError as error:
            ending = error
        self._outgoing.put(None)
        self._events.put(Event(self, None, ending, time.monotonic()))
