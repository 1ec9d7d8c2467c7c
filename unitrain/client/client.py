"""The client that a few lines of Python need."""

import math
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from unitrain.client.connection import Connection
from unitrain.client.input_validation import Array, check_finite, fit_item, one_row
from unitrain.client.metadata import ModelInfo
from unitrain.client.streaming.batcher import Sample
from unitrain.client.streaming.messages import Encoder, decode_response
from unitrain.client.streaming.requests import Result, StreamOptions
from unitrain.client.streaming.stream import Stream
from unitrain.errors import ClientError, DataError, RequestError

DEFAULT_URL = "127.0.0.1:8001"

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 1.0
"""Between looks for a model that is waited for; doubled each time."""

_READY_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Answer:
    """What a model answered.

    Attributes:
        outputs: by name, with a batch axis where the inputs had one.
        version: that answered.
        latency_ms: from sending to the answer.
    """

    outputs: dict[str, Array]
    version: int
    latency_ms: float


class Client:
    """A connection to a Triton server that configures itself from the server's metadata.

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
        """Close the connection; streams have their own and are not touched."""
        self._connection.close()

    def model(self, name: str, version: int | None = None) -> ModelInfo:
        """What the server says of a model, asked anew.

        Raises:
            ClientError: no server, or it has no such model or version (the sentence names those it has).
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
        """What the server says of a model, once it is there and has the model ready.

        Args:
            name: of the model.
            version: that must be ready; None: any.
            timeout_s: to wait at most.
            note: is told, once, what is being waited for.

        Raises:
            ClientError: it was not there in time; the sentence says what is missing.
        """
        start_s, pause_s = time.monotonic(), _FIRST_PAUSE_S
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
                note(f"waiting for it: {missing}")
                note = None
            time.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def models(self) -> dict[str, list[int]]:
        """Every model that the server has ready, with its versions, ascending.

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
        """One request's answer.

        Args:
            name: of the model.
            inputs: by input name, for names that are no keywords; beside `arrays`.
            version: to be asked; None: the newest.
            timeout_s: for the answer.
            allow_nan: send NaN rather than refuse it.
            arrays: by input name. For a batched model with the batch axis (then the outputs have it too)
                or, for one sample, without. An array is converted only where no value changes.

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
                f"{where}: a request has at most {model.max_batch_size} rows, got {len(fitted[0])}; use stream()"
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
            self._models.pop(
                (name, version), None
            )  # the model may have been replaced: its metadata is read anew
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
        """One result a sample, in order, while `samples` is read by a thread of its own.

        Rows are sent together, so that single samples cost little; a sample that already has a batch axis
        stays together, and its outputs have the axis too. What does not fit the model, what the server
        refuses and what gets no answer in time is an error of that sample alone. A server that dies or
        swaps the model meanwhile loses and doubles nothing.

        Args:
            name: of the model.
            samples: dicts of arrays by input name; endless is fine. A `ClientError` in place of a dict
                becomes that sample's error.
            version: to be asked; None: the newest.
            batch_rows: rows a request at most; None: as many as are at hand within 2 ms, up to the server's limit.
            window: requests in flight at most; no more than twice as many are held.
            timeout_s: for the answer to one request.
            retry_for_s: how long a server or model may be away before the stream gives up.
            allow_nan: send NaN rather than refuse it.
            shared_memory: pass tensors by memory shared with a server that this user's `serve` runs on this
                host: worth it for rows of kilobytes and more.
            first_index: of the first result.
            stop: when set, the stream ends with what is in flight.

        Example:
            A sample that does not fit is an error in its place, and the others are answered.

            >>> with Client(url) as client:
            ...     for result in client.stream("linear", [{"x": [1, 2, 3]}, {"x": [1, 2]}]):
            ...         print(result.index, result.outputs or result.error)
            0 {'y': array([2., 4., 6.], dtype=float32)}
            1 sample 1: input x must have the shape [3] or [rows, 3], got [2]

        Raises:
            UsageError: an option is out of range, or shared memory does not go with this server or model.
            ClientError: no server, no such model; or it was away for too long, or the version asked for has
                been replaced by others (after the results in flight).
        """
        options = StreamOptions(
            batch_rows, window, timeout_s, retry_for_s, allow_nan, stop, first_index, shared_memory
        )
        model = self.model(name, version)
        return Stream(model, samples, options).results()
