"""Stream of requests: a bounded number in flight, each sample answered once and in order.

Requests are sent over one gRPC stream. An answer has its request's id; an error without an id belongs to the
oldest request, since a stream answers in order. If the server dies, the gRPC stream ends: after a backoff a
new one is opened, and unanswered requests are sent again.
"""

import contextlib
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable
from queue import Empty, SimpleQueue
from typing import Any

from unitrain.client.grpc_connection import MAX_QUOTED_CHARS, Connection, InferStream, StreamEvent
from unitrain.client.metadata import ModelInfo
from unitrain.client.streaming.batcher import Batcher, Sample, max_request_rows
from unitrain.client.streaming.protobuf_messages import RequestBuilder
from unitrain.client.streaming.requests import Request, Result, RetryPolicy, StreamOptions
from unitrain.errors import ClientError, RequestError

_POLL_S = 0.25
"""Seconds between checks of the stop event while nothing else happens."""

_READY_TIMEOUT_S = 1.0

_SOURCE_END_S = 0.5
"""Seconds that a source may take to end when the stream stops early."""

_DRAIN_S = 5.0
"""Seconds that a stream that stops early waits until the server no longer uses the shared memory."""

_TRANSIENT_ERRORS = (
    "unknown model",  # between unloading and loading, or while a restarted server still loads
    "no available versions",
    "not ready",
    "not at ready state",
    "not healthy",  # the stub process died: the server's supervisor restarts it
    "stopping",
    "stopped accepting",
    "unavailable",
)
"""Parts of error messages of transient failures; a stream's errors have no code."""

_REQUEST_ERROR_CODES = ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "OUT_OF_RANGE", "DATA_LOSS")
"""gRPC codes that end a stream because of its oldest request."""


class Stream:
    """Send one source's samples to one model. Iterate `results()` once.

    Args:
        model: model that is queried.
        samples: the source; endless is fine.
        options: options of the stream.

    Raises:
        UsageError: an option is out of range, or shared memory does not go with this server or model.
    """

    def __init__(self, model: ModelInfo, samples: Iterable[Sample], options: StreamOptions) -> None:
        self._model = model
        self._options = options
        self._events: SimpleQueue[StreamEvent | None] = SimpleQueue()
        self._infer_stream: InferStream | None = None
        self._in_order: deque[Request] = deque()  # all requests without results yet, in the source's order
        self._unsent: deque[Request] = deque()  # to send, or send again, before any new request
        self._in_flight: deque[Request] = deque()  # in the order of their sending over this gRPC stream
        self._last_answer_s = time.monotonic()
        self._fatal_error: ClientError | None = None
        self._retry = RetryPolicy(model, options.retry_for_s)
        max_rows = max_request_rows(model, options.batch_rows)
        self._builder = RequestBuilder(model, options, max_rows)
        self._batcher = Batcher(
            samples, model, max_rows, wake=lambda: self._events.put(None), first_index=options.first_index
        )

    def results(self) -> Generator[Result, None, None]:
        """Yield results in the source's order, each once those before it are complete.

        Raises:
            ClientError: the server or the model was away for too long; requests in flight have errors first.
            Exception: the source raised it; the results of the samples before come first.
        """
        self._batcher.start()
        try:
            while True:
                self._send_requests()
                while self._in_order and self._in_order[0].done():
                    request = self._in_order.popleft()
                    self._send_requests()
                    yield from request.results()
                if not self._in_order and (self._batcher.exhausted or self._stopping()):
                    break
                if not (self._in_order and self._in_order[0].done()):
                    self._wait()
        finally:
            # At the interpreter's exit its other threads have ended, some while they held a lock: waiting would hang.
            if not sys.is_finalizing():
                self._close()
        self._batcher.raise_source_error()
        if self._fatal_error is not None:
            raise self._fatal_error

    def _close(self) -> None:
        self._batcher.close()
        try:
            idle = not self._builder.uses_shared_memory or self._drain()
        finally:
            self._disconnect()
        self._builder.close(idle=idle)
        self._batcher.join(_SOURCE_END_S)

    # --- sending

    def _send_requests(self) -> None:
        """Send requests until the window is full, or there are no more rows."""
        now_s = time.monotonic()
        if self._stopping():
            self._batcher.close()
            if self._infer_stream is None:
                self._fail_unanswered(RequestError("stopped before the server answered", kind="stopped"))
        while len(self._in_flight) < self._options.window and now_s >= self._retry.retry_at_s:
            if not self._unsent and not self._build_next(now_s):
                return
            if self._infer_stream is None and not self._connect():
                return
            self._send(self._unsent.popleft(), now_s)
        self._batcher.disable_wake()

    def _build_next(self, now_s: float) -> bool:
        """Make the next request out of the batcher's rows; return False if there is none."""
        # Results may wait for a request that is sent again: no more than twice the window are kept.
        while len(self._in_order) < 2 * self._options.window and self._fatal_error is None:
            items = self._batcher.take(now_s)
            if items is None:
                return False
            request = Request(items)
            self._in_order.append(request)
            self._unsent.extend(self._builder.build(request))
            if self._unsent:
                return True
        return False

    def _send(self, request: Request, now_s: float) -> None:
        request.sent_s = now_s
        request.first_sent_s = request.first_sent_s or now_s
        self._in_flight.append(request)
        if self._infer_stream is not None:
            message = request.message
            self._infer_stream.send(message if type(message) is bytes else message.SerializeToString())

    # --- receiving

    def _wait(self) -> None:
        """Wait for an event or the next deadline, and handle all events."""
        now_s = time.monotonic()
        deadlines_s = [now_s + _POLL_S]
        if self._in_flight:
            deadlines_s.append(self._in_flight[0].sent_s + self._options.timeout_s)
        if self._retry.retry_at_s > now_s:
            deadlines_s.append(self._retry.retry_at_s)
        linger_s = self._batcher.linger_deadline_s()
        if linger_s is not None and len(self._in_flight) < self._options.window:
            deadlines_s.append(linger_s)
        try:
            event = self._events.get(timeout=max(0.0, min(deadlines_s) - now_s))
            while True:
                if event is not None and event.stream is self._infer_stream:
                    self._handle(event)
                event = self._events.get_nowait()
        except Empty:
            pass
        self._expire(time.monotonic())

    def _handle(self, event: StreamEvent) -> None:
        if event.response is None:
            self._handle_end(event.error)
            return
        self._last_answer_s = event.time_s
        answer = event.response.infer_response
        request = self._pop_answered(answer.id, failed=bool(event.response.error_message))
        if request is None:
            return
        if request.done():  # it has timed out before
            self._builder.release(request)
            return
        request.latency_ms = (event.time_s - request.first_sent_s) * 1e3
        if event.response.error_message:
            self._handle_refusal(request, event.response.error_message)
            return
        self._builder.read_answer(request, answer)
        self._retry.succeeded()

    def _pop_answered(self, number: str, *, failed: bool) -> Request | None:
        """Remove the request that an answer belongs to from those in flight; None if it belongs to none.

        An error has no id. Any other answer without an id is ignored, since it may belong to any request.
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

    def _handle_refusal(self, request: Request, message: str) -> None:
        """Send a request again after a transient error; otherwise split it until the bad sample is alone."""
        text = " ".join(message.split())[:MAX_QUOTED_CHARS]
        if any(words in text.lower() for words in _TRANSIENT_ERRORS):
            self._unsent.append(request)
            self._back_off(f"model {self._model.name} is not ready: {text}")
            return
        self._builder.release(request)
        valid = [item for item in request.items if item.error is None]
        if len(valid) == 1:
            request.error = RequestError(f"sample {valid[0].index}: {self._model.url} refused it: {text}")
            return
        self._unsent.extendleft(reversed(self._builder.split(request)))

    # --- failures

    def _connect(self) -> bool:
        """Open a new gRPC stream; return False if the server or the model is not ready."""
        connection = Connection(self._model.url)
        if not connection.is_ready(self._model, _READY_TIMEOUT_S):
            connection.close()
            self._back_off(f"no server answers, or model {self._model.name} is not ready")
            return False
        try:
            self._builder.connect(self._unsent)
        except ClientError as error:
            connection.close()
            if self._builder.was_connected:
                self._back_off(str(error))
            else:
                self._give_up(str(error))
            return False
        self._infer_stream = InferStream(connection, self._events)
        self._last_answer_s = time.monotonic()
        return True

    def _disconnect(self) -> None:
        """Close the gRPC stream; its unanswered requests are to be sent again."""
        if self._infer_stream is not None:
            self._infer_stream.close()
            self._infer_stream = None
        unanswered = [request for request in self._in_flight if not request.done()]
        self._in_flight.clear()
        self._unsent.extendleft(reversed(unanswered))

    def _handle_end(self, error: Any) -> None:
        """Reconnect after the server has ended the gRPC stream.

        Args:
            error: gRPC's error; None if the server closed the stream without one.
        """
        code = error.code().name if error is not None else "OK"
        details = (
            " ".join(str(error.details()).split())[:MAX_QUOTED_CHARS]
            if error is not None
            else "the server closed the stream"
        )
        if code in _REQUEST_ERROR_CODES and self._in_flight:
            oldest = self._in_flight.popleft()
            if not oldest.done():
                oldest.error = RequestError(
                    f"sample {oldest.items[0].index}: {self._model.url} refused its request: {details} ({code})"
                )
        self._disconnect()
        self._back_off(f"no server answers: {details} ({code})")

    def _drain(self) -> bool:
        """Wait for the requests in flight; return True if the server has answered all of them."""
        deadline_s = time.monotonic() + _DRAIN_S
        while self._in_flight and self._infer_stream is not None and time.monotonic() < deadline_s:
            with contextlib.suppress(Empty):
                event = self._events.get(timeout=_POLL_S)
                if event is not None and event.stream is self._infer_stream:
                    self._handle(event)
        return not self._in_flight

    def _back_off(self, reason: str) -> None:
        """Send nothing until the retry policy's next attempt, or give up."""
        final = self._retry.failed(reason)
        if final is not None:
            self._give_up(final)

    def _give_up(self, reason: str) -> None:
        self._fatal_error = ClientError(reason)
        self._batcher.close()
        self._disconnect()
        self._fail_unanswered(RequestError(reason, kind="unavailable"))

    def _expire(self, now_s: float) -> None:
        """Fail requests that have timed out; drop a gRPC stream that has not answered for as long."""
        timeout_s = self._options.timeout_s
        expired = [r for r in self._in_flight if now_s - r.sent_s >= timeout_s and not r.done()]
        for request in expired:
            request.error = RequestError(
                f"sample {request.items[0].index}: {self._model.url} did not answer its request within "
                f"{timeout_s:g} s (--timeout)",
                kind="deadline",
            )
        if expired and now_s - self._last_answer_s >= timeout_s:
            self._disconnect()

    def _fail_unanswered(self, error: ClientError) -> None:
        for request in (*self._unsent, *self._in_flight):
            if not request.done():
                request.error = error
        self._unsent.clear()
        self._in_flight.clear()

    def _stopping(self) -> bool:
        return self._options.stop is not None and self._options.stop.is_set()
