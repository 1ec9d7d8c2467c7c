"""The client that a few lines of Python need."""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from unitrain.client.arrays import Array, check_finite, fit_item
from unitrain.client.connection import Connection
from unitrain.client.intake import Sample
from unitrain.client.model import ModelInfo
from unitrain.client.request import Result, StreamOptions
from unitrain.client.stream import Stream
from unitrain.client.wire import decode_response, encode_request
from unitrain.errors import DataError

DEFAULT_URL = "127.0.0.1:8001"


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
        >>> with Client("127.0.0.1:8001") as client:  # doctest: +SKIP
        ...     answer = client.predict("curve_fitting", x=[[1.0], [2.0]])
        ...     answer.outputs["y"], answer.version
        ...     for result in client.stream("curve_fitting", ({"x": row} for row in rows)):
        ...         print(result.index, result.outputs or result.error)
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

        Raises:
            ClientError: no server, or no such model or version.
            DataError: a name, shape or dtype that does not fit the model, or a NaN.
            RequestError: the server refused it, or did not answer in time.
        """
        from tritonclient.grpc import service_pb2  # noqa: F401 - brings gRPC in before the clock starts

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
        request = encode_request(model, fitted, 1, where)
        start_s = time.monotonic()
        with self._connection.telling():
            response = self._connection.stub.ModelInfer(request, timeout=timeout_s)
        latency_ms = (time.monotonic() - start_s) * 1e3
        outputs, answered = decode_response(response)
        if single and model.signature.batched:
            outputs = {n: a[0] for n, a in outputs.items()}
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
        stop: threading.Event | None = None,
    ) -> Iterator[Result]:
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
            stop: when set, the stream ends with what is in flight.

        Raises:
            UsageError: an option is out of range.
            ClientError: no server, no such model; or it was away for too long (after the results in flight).
        """
        options = StreamOptions(batch_rows, window, timeout_s, retry_for_s, allow_nan, stop)
        model = self.model(name, version)
        return Stream(model, samples, options).results()
