"""The streaming engine: a bounded window of requests in flight, every sample answered once and in order.

Requests go over one gRPC stream. Its answers carry the request's id; one without is the oldest's, since a
stream answers first in, first out. A server that dies ends the stream: a new one is opened, after a
growing pause, and what is unanswered is sent again.
"""

import contextlib
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable
from queue import Empty, SimpleQueue
from typing import Any

from unitrain.client.connection import MAX_TEXT, Connection, Event, Link
from unitrain.client.metadata import ModelInfo
from unitrain.client.streaming.batcher import Intake, Sample, rows_a_request
from unitrain.client.streaming.messages import Packer
from unitrain.client.streaming.requests import Patience, Request, Result, StreamOptions
from unitrain.errors import ClientError, RequestError

_POLL_S = 0.25
"""How often a stop that was asked for is looked for when nothing else happens."""

_READY_TIMEOUT_S = 1.0

_SOURCE_END_S = 0.5
"""How long a source that is stopped half-way may take to end."""

_DRAIN_S = 5.0
"""How long a stream that ends early waits for the server to be done with the shared memory."""

_PASSING = (
    "unknown model",  # between unloading and loading, or while a server that was restarted still loads
    "no available versions",
    "not ready",
    "not at ready state",
    "not healthy",  # the stub process died: the server's supervisor restarts it
    "stopping",
    "stopped accepting",
    "unavailable",
)
"""What a server says of failures that pass; a stream's errors come as text alone."""

_LASTING = ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "OUT_OF_RANGE", "DATA_LOSS")
"""gRPC's codes that end a stream because of the request that is its oldest."""


class Stream:
    """One source's way through one model; iterate `results()` once."""

    def __init__(self, model: ModelInfo, samples: Iterable[Sample], options: StreamOptions) -> None:
        self._model = model
        self._options = options
        self._events: SimpleQueue[Event | None] = SimpleQueue()
        self._link: Link | None = None
        self._order: deque[Request] = deque()  # as the results will come
        self._unsent: deque[Request] = deque()  # to be sent, or sent again, before anything new
        self._in_flight: deque[Request] = deque()  # as they were sent on this link
        self._heard_s = time.monotonic()
        self._given_up: ClientError | None = None
        self._patience = Patience(model, options.retry_for_s)
        max_rows = rows_a_request(model, options.batch_rows)
        self._packer = Packer(model, options, max_rows)
        self._intake = Intake(
            samples, model, max_rows, wake=lambda: self._events.put(None), first_index=options.first_index
        )

    def results(self) -> Generator[Result, None, None]:
        """Results in the source's order, each as soon as those before it are there.

        Raises:
            ClientError: the server or the model was away for too long; what was in flight came first, as errors.
            Exception: what the source raised, after the results of what came before.
        """
        self._intake.start()
        try:
            while True:
                self._send_what_fits()
                while self._order and self._order[0].done():
                    request = self._order.popleft()
                    self._send_what_fits()
                    yield from request.results()
                if not self._order and (self._intake.exhausted or self._stopping()):
                    break
                if not (self._order and self._order[0].done()):
                    self._wait()
        finally:
            # As the interpreter ends, its other threads are gone, some with a lock in hand: nobody to wait for.
            if not sys.is_finalizing():
                self._end()
        self._intake.raise_failure()
        if self._given_up is not None:
            raise self._given_up

    def _end(self) -> None:
        self._intake.close()
        try:
            idle = not self._packer.shares_memory or self._drained()
        finally:
            self._drop_link()
        self._packer.close(idle=idle)
        self._intake.join(_SOURCE_END_S)

    # --- sending

    def _send_what_fits(self) -> None:
        now = time.monotonic()
        if self._stopping():
            self._intake.close()
            if self._link is None:
                self._fail_all(RequestError("stopped before the server answered", kind="stopped"))
        while len(self._in_flight) < self._options.window and now >= self._patience.resume_at_s:
            if not self._unsent and not self._take(now):
                return
            if self._link is None and not self._connect():
                return
            self._send(self._unsent.popleft(), now)
        self._intake.idle()

    def _take(self, now: float) -> bool:
        """Put the intake's next request in line; whether there was one."""
        # Results may wait behind a request that is being sent again: no more of them than a window holds.
        while len(self._order) < 2 * self._options.window and self._given_up is None:
            items = self._intake.take(now)
            if items is None:
                return False
            request = Request(items)
            self._order.append(request)
            self._unsent.extend(self._packer.pack(request))
            if self._unsent:
                return True
        return False

    def _send(self, request: Request, now: float) -> None:
        request.sent_s = now
        request.first_sent_s = request.first_sent_s or now
        self._in_flight.append(request)
        if self._link is not None:
            message = request.message
            self._link.send(message if type(message) is bytes else message.SerializeToString())

    # --- receiving

    def _wait(self) -> None:
        """Wait until something happens or is due, and handle all that has happened."""
        now = time.monotonic()
        due = [now + _POLL_S]
        if self._in_flight:
            due.append(self._in_flight[0].sent_s + self._options.timeout_s)
        if self._patience.resume_at_s > now:
            due.append(self._patience.resume_at_s)
        linger = self._intake.due_at()
        if linger is not None and len(self._in_flight) < self._options.window:
            due.append(linger)
        try:
            event = self._events.get(timeout=max(0.0, min(due) - now))
            while True:
                if event is not None and event.link is self._link:
                    self._handle(event)
                event = self._events.get_nowait()
        except Empty:
            pass
        self._expire(time.monotonic())

    def _handle(self, event: Event) -> None:
        if event.response is None:
            self._lost(event.ending)
            return
        self._heard_s = event.time_s
        answer = event.response.infer_response
        request = self._answered(answer.id, failed=bool(event.response.error_message))
        if request is None:
            return
        if request.done():  # its time had run out
            self._packer.free(request)
            return
        request.latency_ms = (event.time_s - request.first_sent_s) * 1e3
        if event.response.error_message:
            self._refused(request, event.response.error_message)
            return
        self._packer.unpack(request, answer)
        self._patience.answered()

    def _answered(self, number: str, *, failed: bool) -> Request | None:
        """The request that an answer belongs to, taken from those in flight; None if it belongs to none of them.

        An error comes without an id. Any other answer without one is ignored: it may be of any request.
        """
        if not self._in_flight:
            return None
        oldest = self._in_flight.popleft()
        if (failed and not number) or str(oldest.number) == number:
            return oldest
        self._in_flight.appendleft(oldest)
        for request in self._in_flight:
            if str(request.number) == number:
                self._in_flight.remove(request)
                return request
        return None

    def _refused(self, request: Request, message: str) -> None:
        text = " ".join(message.split())[:MAX_TEXT]
        if any(words in text.lower() for words in _PASSING):
            self._unsent.append(request)
            self._pause(f"model {self._model.name} is not ready: {text}")
            return
        self._packer.free(request)
        good = [item for item in request.items if item.error is None]
        if len(good) == 1:
            request.error = RequestError(f"sample {good[0].index}: {self._model.url} refused it: {text}")
            return
        # One bad row must not take the others with it.
        self._unsent.extendleft(reversed(self._packer.split(request)))

    # --- trouble

    def _connect(self) -> bool:
        connection = Connection(self._model.url)
        if not connection.is_ready(self._model, _READY_TIMEOUT_S):
            connection.close()
            self._pause(f"no server answers, or model {self._model.name} is not ready")
            return False
        try:
            self._packer.open(connection, self._unsent)
        except ClientError as error:
            connection.close()
            if self._packer.was_open:
                self._pause(str(error))
            else:
                self._give_up(str(error))
            return False
        self._link = Link(connection, self._events)
        self._heard_s = time.monotonic()
        return True

    def _lost(self, ending: Any) -> None:
        """The stream has ended by itself: what is unanswered is to be sent again."""
        code = ending.code().name if ending is not None else "OK"
        details = (
            " ".join(str(ending.details()).split())[:MAX_TEXT]
            if ending is not None
            else "the server closed the stream"
        )
        if code in _LASTING and self._in_flight:
            oldest = self._in_flight.popleft()
            if not oldest.done():
                oldest.error = RequestError(
                    f"sample {oldest.items[0].index}: {self._model.url} refused its request: {details} ({code})"
                )
        self._drop_link()
        self._pause(f"no server answers: {details} ({code})")

    def _drop_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None
        again = [request for request in self._in_flight if not request.done()]
        self._in_flight.clear()
        self._unsent.extendleft(reversed(again))

    def _drained(self) -> bool:
        """Whether the server has answered all that it was sent, after waiting for it for a while."""
        deadline = time.monotonic() + _DRAIN_S
        while self._in_flight and self._link is not None and time.monotonic() < deadline:
            with contextlib.suppress(Empty):
                event = self._events.get(timeout=_POLL_S)
                if event is not None and event.link is self._link:
                    self._handle(event)
        return not self._in_flight

    def _pause(self, why: str) -> None:
        """Send nothing for a while; or give up."""
        reason = self._patience.failed(why)
        if reason is not None:
            self._give_up(reason)

    def _give_up(self, reason: str) -> None:
        self._given_up = ClientError(reason)
        self._intake.close()
        self._drop_link()
        self._fail_all(RequestError(reason, kind="unavailable"))

    def _expire(self, now: float) -> None:
        """Give up requests whose time has run out; a stream that has been silent for as long is dropped."""
        timeout_s = self._options.timeout_s
        expired = [r for r in self._in_flight if now - r.sent_s >= timeout_s and not r.done()]
        for request in expired:
            request.error = RequestError(
                f"sample {request.items[0].index}: {self._model.url} did not answer its request within "
                f"{timeout_s:g} s (--timeout)",
                kind="deadline",
            )
        if expired and now - self._heard_s >= timeout_s:
            self._drop_link()

    def _fail_all(self, error: ClientError) -> None:
        for request in (*self._unsent, *self._in_flight):
            if not request.done():
                request.error = error
        self._unsent.clear()
        self._in_flight.clear()

    def _stopping(self) -> bool:
        return self._options.stop is not None and self._options.stop.is_set()
