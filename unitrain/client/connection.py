"""A gRPC connection to a Triton server, its failures told in our own words."""

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

_ASK_TIMEOUT_S = 10.0
"""For metadata, which a server answers in milliseconds."""

MAX_TEXT = 1000
"""Characters that a message quotes of what a server says."""

_MOST_NAMES = 20


class Connection:
    """One channel to one server.

    Attributes:
        url: `host:port`.
        stub: the generated client of Triton's gRPC service.
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
        """End every call on it."""
        self._channel.close()

    def model(self, name: str, version: int | None = None) -> ModelInfo:
        """What the server says of a model.

        Raises:
            ClientError: no server, or it has no such model or version.
        """
        import grpc
        from tritonclient.grpc import service_pb2

        asked = "" if version is None else str(version)
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"a model's name is text in UTF-8, got {name!r}") from error
        try:
            metadata = self.stub.ModelMetadata(
                service_pb2.ModelMetadataRequest(name=name, version=asked), timeout=_ASK_TIMEOUT_S
            )
            config = self.stub.ModelConfig(
                service_pb2.ModelConfigRequest(name=name, version=asked), timeout=_ASK_TIMEOUT_S
            ).config
        except grpc.RpcError as error:
            raise self._unknown(name, version, error) from error
        return model_info(name, metadata, config, version, self.url)

    def served(self, timeout_s: float = _ASK_TIMEOUT_S) -> dict[str, list[int]]:
        """Every model that the server has ready, with its versions, ascending.

        Triton's statistics name them; its repository index is locked where the server is hardened.

        Raises:
            ClientError: no server.
        """
        from tritonclient.grpc import service_pb2

        with self.telling():
            answer = self.stub.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=timeout_s)
        found: dict[str, list[int]] = {}
        for model in answer.model_stats:
            if model.name.startswith(CANDIDATE_PREFIX):  # a version that `serve` is just trying
                continue
            if not model.version.isdecimal():
                raise ClientError(
                    f"{self.url}: model {model.name[:MAX_TEXT]} has a version that is no number"
                )
            found.setdefault(model.name, []).append(int(model.version))
        return {name: sorted(versions) for name, versions in sorted(found.items())}

    def infer(self, request: bytes, timeout_s: float) -> Any:
        """The ModelInferResponse to a serialised ModelInferRequest.

        Raises:
            ClientError: no server, no answer in time, or it refused the request.
        """
        from tritonclient.grpc import service_pb2

        # The generated stub would serialise messages, and copy their arrays twice more.
        call = self._channel.unary_unary(
            _method("ModelInfer"), response_deserializer=service_pb2.ModelInferResponse.FromString
        )
        with self.telling():
            return call(request, timeout=timeout_s)

    def stream(self, requests: Iterator[bytes]) -> Any:
        """The call of a new gRPC stream; iterating it gives ModelStreamInferResponse messages.

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
        """Whether the server answers and says that the model is ready."""
        import grpc
        from tritonclient.grpc import service_pb2

        version = "" if model.version is None else str(model.version)
        request = service_pb2.ModelReadyRequest(name=model.name, version=version)
        try:
            return bool(self.stub.ModelReady(request, timeout=timeout_s).ready)
        except grpc.RpcError:
            return False

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Turn gRPC's errors inside the block into ours."""
        import grpc

        try:
            yield
        except grpc.RpcError as error:
            raise request_error(error, self.url) from error

    def _unknown(self, name: str, version: int | None, error: Any) -> ClientError:
        import grpc

        if error.code() is not grpc.StatusCode.NOT_FOUND:
            return request_error(error, self.url)
        models = self.served()
        if name in models and version is not None:
            return ClientError(
                f"{self.url}: model {name} has no version {version} ready; it has {_some(map(str, models[name]))}"
            )
        if not models:
            return ClientError(f"{self.url}: there is no model {name}; the server has none ready yet")
        near = difflib.get_close_matches(name, models, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return ClientError(f"{self.url}: there is no model {name}; the server has {_some(models)}{hint}")


def _some(names: Iterable[str]) -> str:
    """The first names, where there are many."""
    first = list(itertools.islice(names, _MOST_NAMES + 1))
    return ", ".join([*first[:_MOST_NAMES], "…"] if len(first) > _MOST_NAMES else first)[:MAX_TEXT]


def _method(name: str) -> str:
    from tritonclient.grpc import service_pb2

    return f"/{service_pb2.DESCRIPTOR.services_by_name['GRPCInferenceService'].full_name}/{name}"


def check_url(url: str) -> str:
    """`url` as `host:port`, gRPC's scheme taken off.

    Raises:
        UsageError: it is none.
    """
    address = url.removeprefix("grpc://")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16 or "/" in address:
        raise UsageError(f"url: expected `host:port` of Triton's gRPC endpoint, got `{url}`")
    return address


def request_error(error: Any, url: str) -> ClientError:
    """Our error for a gRPC one."""
    status, words = error_text(error)
    words = words[:MAX_TEXT]
    if status == "UNAVAILABLE":
        return ClientError(
            f"{url}: no server answers ({words}); start one with `python -m unitrain serve` or name it with --url"
        )
    if status == "DEADLINE_EXCEEDED":
        return RequestError(f"{url}: the server did not answer in time", kind="deadline")
    return RequestError(f"{url}: {words} ({status})")


def is_local(url: str) -> bool:
    """Whether `host:port` is on this machine, as its address tells."""
    host = url.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
