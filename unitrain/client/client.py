"""Client for Python: single requests and streams to any served model."""

import math
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from unitrain.client.grpc_connection import Connection
from unitrain.client.input_validation import Array, check_finite, fit_item, one_row
from unitrain.client.metadata import ModelInfo
from unitrain.client.streaming.batcher import Sample
from unitrain.client.streaming.protobuf_messages import Encoder, decode_response
from unitrain.client.streaming.requests import Result, StreamOptions
from unitrain.client.streaming.stream import Stream
from unitrain.errors import ClientError, DataError, RequestError

DEFAULT_URL = "127.0.0.1:8001"

_FIRST_POLL_S, _MAX_POLL_S = 0.1, 1.0
"""Seconds between probes of a model that `wait` waits for; doubled each time."""

_READY_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Answer:
    """Answer to one request.

    Attributes:
        outputs: arrays by name, in the served dtypes; [rows, *dims] if the inputs had a batch axis, else [*dims].
        version: model version that answered.
        latency_ms: milliseconds from sending to the answer.
    """

    outputs: dict[str, Array]
    version: int
    latency_ms: float


class Client:
    """Client of a Triton server, which configures itself from the server's metadata.

    Args:
        url: `host:port` of the server's gRPC endpoint.

    Raises:
        UsageError: the url is no `host:port`.

    Example:
        `linear` answers y = 2 * x for rows of three values.

        >>> with Client(url) as client:
        ...     print(client.model("linear").signature)
        ...     answer = client.predict("linear", x=[1.0, 2.0, 3.0])
        ...     print(answer.outputs["y"], answer.version)
        ...     rows = ({"x": [i, i, i]} for i in range(3))
        ...     for result in client.stream("linear", rows):
        ...         print(result.index, result.outputs["y"], result.version)
        (x: FP32[3]) -> (y: FP32[3]), each with a leading batch axis
        [2. 4. 6.] 1
        0 [0. 0. 0.] 1
        1 [2. 2. 2.] 1
        2 [4. 4. 4.] 1
    """

    def __init__(self, url: str = DEFAULT_URL) -> None:
        self._connection = Connection(url)
        self._models: dict[tuple[str, int | None], ModelInfo] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Streams have separate connections, which stay open."""
        self._connection.close()

    def model(self, name: str, version: int | None = None) -> ModelInfo:
        """Query a model's metadata: inputs, outputs, versions.

        Args:
            name: name of the model.
            version: model version; None: the newest.

        Raises:
            ClientError: no server, or it has no such model or version (the message names those it has).
        """
        info = self._connection.model(name, version)
        self._models[name, version] = info
        return info

    def wait(
        self,
        name: str,
        version: int | None = None,
        *,
        timeout_s: float = math.inf,
        note: Callable[[str], None] | None = None,
    ) -> ModelInfo:
        """Wait until the server has a model ready, and return the model's metadata.

        Args:
            name: name of the model.
            version: model version that must be ready; None: any.
            timeout_s: maximum number of seconds to wait.
            note: function that prints, once, what is missing.

        Raises:
            ClientError: it was not ready in time; the message names what is missing.
        """
        start_s, poll_s = time.monotonic(), _FIRST_POLL_S
        while True:
            try:
                info = self._connection.model(name, version)
                if self._connection.is_ready(info, _READY_TIMEOUT_S):
                    self._models[name, version] = info
                    return info
                missing = ClientError(f"{info.url}: model {name} is not ready")
            except ClientError as error:
                missing = error
            left_s = start_s + timeout_s - time.monotonic()
            if left_s <= 0:
                raise missing
            if note is not None:
                note(f"waiting for the model: {missing}")
                note = None
            time.sleep(min(poll_s, left_s))
            poll_s = min(2 * poll_s, _MAX_POLL_S)

    def models(self) -> dict[str, list[int]]:
        """Return every model that the server has ready, with its versions in ascending order.

        Raises:
            ClientError: no server.
        """
        return self._connection.served()

    def predict(
        self,
        name: str,
        inputs: Mapping[str, Any] | None = None,
        /,
        *,
        version: int | None = None,
        timeout_s: float = 30.0,
        allow_nan: bool = False,
        **arrays: Any,
    ) -> Answer:
        """Send one request and return its answer.

        Args:
            name: name of the model.
            inputs: arrays by input name, for names that are no Python keywords; added to `arrays`.
            version: model version to query; None: the newest.
            timeout_s: seconds for the answer.
            allow_nan: send NaN rather than refuse it.
            arrays: arrays by input name: [rows, *dims] for several samples, [*dims] for one. The outputs
                have a batch axis if the inputs have one. A dtype is converted only if no value changes.

        Example:
            >>> with Client(url) as client:
            ...     client.predict("linear", x=[[1, 2, 3], [4, 5, 6]]).outputs["y"].shape
            ...     client.predict("linear", {"x": [1, 2, 3]}, version=1).version
            (2, 3)
            1

        Raises:
            ClientError: no server, or no such model or version.
            DataError: a name, shape or dtype that does not fit the model, or a NaN.
            RequestError: the server refused it, or did not answer in time.
        """
        model = self._models.get((name, version)) or self.model(name, version)
        where = f"model {name}"
        fitted, single = fit_item({**(inputs or {}), **arrays}, model.signature, where)
        if model.signature.batched and len(fitted[0]) > model.max_batch_size:
            raise DataError(
                f"{where}: a request has up to {model.max_batch_size} rows, got {len(fitted[0])}; use stream()"
            )
        if not allow_nan:
            for spec, array in zip(model.inputs, fitted, strict=True):
                check_finite(array, spec, where)
        request = Encoder(model).encode(fitted, 1, where)
        start_s = time.monotonic()
        response = self._connection.infer(request, timeout_s)
        latency_ms = (time.monotonic() - start_s) * 1e3
        try:
            outputs, answered = decode_response(
                response, model, len(fitted[0]) if model.signature.batched else 1
            )
        except RequestError:
            self._models.pop((name, version), None)  # it may have been replaced: query its metadata again
            raise
        if single and model.signature.batched:
            outputs = {n: one_row(a, 0) for n, a in outputs.items()}
        return Answer(outputs, answered, latency_ms)

    def stream(
        self,
        name: str,
        samples: Iterable[Sample],
        *,
        version: int | None = None,
        batch_rows: int | None = None,
        window: int = 16,
        timeout_s: float = 30.0,
        retry_for_s: float = 60.0,
        allow_nan: bool = False,
        shared_memory: bool = False,
        first_index: int = 0,
        stop: threading.Event | None = None,
    ) -> Generator[Result, None, None]:
        """Yield one result a sample, in order, while a separate thread reads the samples.

        Rows are sent together, which makes single samples cheap. A sample with a batch axis is never split,
        and its outputs have the axis. A sample that does not fit the model, that the server refuses, or that
        is not answered in time has an error in its place; the others are answered. If the server dies or
        the model is swapped, unanswered samples are sent again: none is lost, and none has two results.

        Args:
            name: name of the model.
            samples: dicts of arrays by input name; endless is fine. A `ClientError` in place of a dict
                becomes that sample's error.
            version: model version to query; None: the newest.
            batch_rows: maximum number of rows in a request; None: the rows read within 2 ms, up to the
                server's limit.
            window: maximum number of requests in flight; results of twice as many are kept.
            timeout_s: seconds for the answer to one request.
            retry_for_s: seconds for which the server or model may be away before the stream gives up.
            allow_nan: send NaN rather than refuse it.
            shared_memory: exchange tensors by memory shared with a server that this user's `serve` runs on
                this host; faster for rows of kilobytes and more.
            first_index: index of the first result.
            stop: event that ends the stream: no more samples are read, and requests in flight are answered.

        Example:
            A sample that does not fit has an error in its place, and the others are answered.

            >>> with Client(url) as client:
            ...     for result in client.stream("linear", [{"x": [1, 2, 3]}, {"x": [1, 2]}]):
            ...         print(result.index, result.outputs or result.error)
            0 {'y': array([2., 4., 6.], dtype=float32)}
            1 sample 1: input x must have the shape [3] or [rows, 3], got [2]

        Raises:
            UsageError: an option is out of range, or shared memory does not go with this server or model.
            ClientError: no server, or no such model. After the results in flight: the server was away for too
                long, or the requested version was replaced by others.
        """
        options = StreamOptions(
            batch_rows, window, timeout_s, retry_for_s, allow_nan, stop, first_index, shared_memory
        )
        model = self.model(name, version)
        return Stream(model, samples, options).results()
