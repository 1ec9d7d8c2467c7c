"""gRPC connection to a Triton server: metadata, single requests, and streams of requests."""

import contextlib
import difflib
import ipaddress
import itertools
import threading
import time
from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from typing import Any, NamedTuple, Self

from unitrain.client.metadata import MAX_MESSAGE_BYTES, ModelInfo, model_info
from unitrain.errors import ClientError, RequestError, UsageError
from unitrain.grpc_channel import error_text, open_channel
from unitrain.repository.layout import CANDIDATE_PREFIX

_METADATA_TIMEOUT_S = 10.0
"""Generous: a server answers requests for metadata within milliseconds."""

MAX_QUOTED_CHARS = 1000
"""Maximum number of characters that an error message quotes of a server's text."""

_MAX_QUOTED_NAMES = 20


class Connection:
    """One gRPC channel to one server.

    Args:
        url: `host:port` of the server's gRPC endpoint.

    Attributes:
        url: `host:port`.
        stub: generated client of Triton's gRPC service.

    Raises:
        UsageError: the url is no `host:port`.
    """

    def __init__(self, url: str) -> None:
        from tritonclient.grpc import service_pb2_grpc

        self.url = check_url(url)
        self._channel = open_channel(
            self.url, max_message_bytes=MAX_MESSAGE_BYTES, proxy=not is_local(self.url)
        )
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel and end every call on it."""
        self._channel.close()

    def model(self, name: str, version: int | None = None) -> ModelInfo:
        """Query a model's metadata and configuration.

        Args:
            name: name of the model.
            version: model version; None: the newest.

        Raises:
            ClientError: no server, or it has no such model or version.
        """
        import grpc
        from tritonclient.grpc import service_pb2

        version_text = "" if version is None else str(version)
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"a model's name is text in UTF-8, got {name!r}") from error
        try:
            metadata = self.stub.ModelMetadata(
                service_pb2.ModelMetadataRequest(name=name, version=version_text), timeout=_METADATA_TIMEOUT_S
            )
            config = self.stub.ModelConfig(
                service_pb2.ModelConfigRequest(name=name, version=version_text), timeout=_METADATA_TIMEOUT_S
            ).config
        except grpc.RpcError as error:
            raise self._missing_model(name, version, error) from error
        return model_info(name, metadata, config, version, self.url)

    def served(self, timeout_s: float = _METADATA_TIMEOUT_S) -> dict[str, list[int]]:
        """Return every model that the server has ready, with its versions in ascending order.

        The names are those of Triton's statistics, since a hardened server refuses its repository index.

        Raises:
            ClientError: no server.
        """
        from tritonclient.grpc import service_pb2

        with self.client_errors():
            answer = self.stub.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=timeout_s)
        found: dict[str, list[int]] = {}
        for model in answer.model_stats:
            if model.name.startswith(CANDIDATE_PREFIX):  # a version that `serve` is verifying
                continue
            if not model.version.isdecimal():
                raise ClientError(
                    f"{self.url}: model {model.name[:MAX_QUOTED_CHARS]} has a version that is no number"
                )
            found.setdefault(model.name, []).append(int(model.version))
        return {name: sorted(versions) for name, versions in sorted(found.items())}

    def infer(self, request: bytes, timeout_s: float) -> Any:
        """Send one request, and return the answer, a ModelInferResponse message.

        Args:
            request: serialized ModelInferRequest message.
            timeout_s: seconds to wait for the answer.

        Raises:
            ClientError: no server, no answer in time, or it refused the request.
        """
        from tritonclient.grpc import service_pb2

        # The generated stub takes messages, not bytes: it would copy their arrays two more times.
        call = self._channel.unary_unary(
            _method("ModelInfer"), response_deserializer=service_pb2.ModelInferResponse.FromString
        )
        with self.client_errors():
            return call(request, timeout=timeout_s)

    def stream(self, requests: Iterator[bytes]) -> Any:
        """Open a gRPC stream, and return its call, an iterator of ModelStreamInferResponse messages.

        Args:
            requests: serialised ModelInferRequest messages; read by a thread of gRPC's own.
        """
        from tritonclient.grpc import service_pb2

        call = self._channel.stream_stream(
            _method("ModelStreamInfer"),
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )
        return call(requests)

    def is_ready(self, model: ModelInfo, timeout_s: float) -> bool:
        """Return True if the server answers and reports the model as ready."""
        import grpc
        from tritonclient.grpc import service_pb2

        version = "" if model.version is None else str(model.version)
        request = service_pb2.ModelReadyRequest(name=model.name, version=version)
        try:
            return bool(self.stub.ModelReady(request, timeout=timeout_s).ready)
        except grpc.RpcError:
            return False

    @contextlib.contextmanager
    def client_errors(self) -> Iterator[None]:
        """Convert gRPC's errors inside the block to `ClientError`."""
        import grpc

        try:
            yield
        except grpc.RpcError as error:
            raise request_error(error, self.url) from error

    def _missing_model(self, name: str, version: int | None, error: Any) -> ClientError:
        """Return the error for a model or version that the server does not have."""
        import grpc

        if error.code() is not grpc.StatusCode.NOT_FOUND:
            return request_error(error, self.url)
        models = self.served()
        if name in models and version is not None:
            return ClientError(
                f"{self.url}: model {name} has no version {version} ready; it has {_first_names(map(str, models[name]))}"
            )
        if not models:
            return ClientError(f"{self.url}: there is no model {name}; the server has none ready yet")
        near = difflib.get_close_matches(name, models, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return ClientError(
            f"{self.url}: there is no model {name}; the server has {_first_names(models)}{hint}"
        )


def _first_names(names: Iterable[str]) -> str:
    """Join the names, at most 20 of them."""
    first = list(itertools.islice(names, _MAX_QUOTED_NAMES + 1))
    more = len(first) > _MAX_QUOTED_NAMES
    return ", ".join([*first[:_MAX_QUOTED_NAMES], "…"] if more else first)[:MAX_QUOTED_CHARS]


def _method(name: str) -> str:
    from tritonclient.grpc import service_pb2

    return f"/{service_pb2.DESCRIPTOR.services_by_name['GRPCInferenceService'].full_name}/{name}"


def check_url(url: str) -> str:
    """Return `url` as `host:port`, without gRPC's scheme.

    Raises:
        UsageError: it is no `host:port`.
    """
    address = url.removeprefix("grpc://")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16 or "/" in address:
        raise UsageError(f"url: expected `host:port` of Triton's gRPC endpoint, got `{url}`")
    return address


def request_error(error: Any, url: str) -> ClientError:
    """Return the `ClientError` for a gRPC error."""
    status, details = error_text(error)
    details = details[:MAX_QUOTED_CHARS]
    if status == "UNAVAILABLE":
        return ClientError(
            f"{url}: no server answers ({details}); start one with `python -m unitrain serve` or name it with --url"
        )
    if status == "DEADLINE_EXCEEDED":
        return RequestError(f"{url}: the server did not answer in time", kind="deadline")
    return RequestError(f"{url}: {details} ({status})")


def is_local(url: str) -> bool:
    """Return True if `host:port` is an address of this machine's loopback interface."""
    host = url.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class StreamEvent(NamedTuple):
    """Answer on an `InferStream`, or its end.

    Attributes:
        stream: the stream that it happened on.
        response: ModelStreamInferResponse message; None at the end of the stream.
        error: gRPC's error that ended the stream; None if the server closed it without one.
        time_s: monotonic time of its arrival.
    """

    stream: "InferStream"
    response: Any
    error: Any
    time_s: float


class InferStream:
    """One gRPC stream of requests and answers. Once it has ended, it can't be used again.

    Args:
        connection: connection of this stream alone, which it closes.
        events: queue that receives the answers and the end.
    """

    def __init__(self, connection: Connection, events: "SimpleQueue[StreamEvent | None]") -> None:
        self._connection = connection
        self._events = events
        self._outgoing: SimpleQueue[Any] = SimpleQueue()
        self._call = connection.stream(iter(self._outgoing.get, None))
        threading.Thread(target=self._receive, name="unitrain-receiver", daemon=True).start()

    def send(self, request: bytes) -> None:
        """Queue a serialized ModelInferRequest message for sending."""
        self._outgoing.put(request)

    def close(self) -> None:
        """Cancel the stream, answered or not, and close its connection."""
        self._outgoing.put(None)
        self._call.cancel()
        self._connection.close()

    def _receive(self) -> None:
        """Put answers into the queue; the receiver thread's function."""
        import grpc

        error = None
        try:
            for response in self._call:
                self._events.put(StreamEvent(self, response, None, time.monotonic()))
        except grpc.RpcError as raised:
            error = raised
        self._outgoing.put(None)
        self._events.put(StreamEvent(self, None, error, time.monotonic()))
