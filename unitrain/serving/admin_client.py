"""The supervisor's connection to its Triton: readiness, loading, unloading, inference, shared memory.

Requests that any client may send use gRPC. Administration uses HTTP over a Unix socket in a private folder; on TCP it
is closed.
"""

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from unitrain.errors import ServingError, UsageError
from unitrain.grpc_channel import Tls, error_text, open_channel

_SHORT_TIMEOUT_S = 2.0
_REGION_TIMEOUT_S = 10.0
"""A region that is not released in time stays mapped until the next client."""
_LOAD_TIMEOUT_S = 600.0
"""A large model on a slow disk takes minutes."""
_GONE = ("UNAVAILABLE", "CANCELLED")
_MAX_BYTES = 16 << 20
"""Maximum size of a request to the administration socket, and of its answer."""
_MAX_NAME = 512
_STATUS = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 409: "ALREADY_EXISTS", 501: "UNIMPLEMENTED"}
_UNAVAILABLE = 503
_TRUE = frozenset({"true", "1", "True", "TRUE"})


class ServerGone(ServingError):  # noqa: N818 - it says what happened
    """There is no answer: there is no server, or this connection was closed."""


class Refused(ServingError):  # noqa: N818 - it says what happened
    """The server answered with an error.

    Args:
        message: Triton's words.
        status: name of gRPC's status code.
    """

    def __init__(self, message: str, status: str) -> None:
        super().__init__(message)
        self.status = status


class Admin:
    """Connection to one server; safe in several threads.

    Args:
        url: `host:port` of gRPC.
        tls: TLS settings of gRPC; None: no encryption.
        socket_path: path of the administration socket; None: nothing can be loaded, unloaded or registered.
    """

    def __init__(self, url: str, tls: Tls | None = None, socket_path: Path | None = None) -> None:
        self._url = url
        self._tls = tls
        self._socket_path = socket_path
        self._channel: Any = None
        self._stub: Any = None
        self._closed = False
        self._connecting = threading.Lock()
        self._open: set[_UnixConnection] = set()

    def close(self) -> None:
        """End the connection; calls in flight end with `ServerGone`."""
        self._closed = True
        if self._channel is not None:
            self._channel.close()
        with self._connecting:
            for connection in self._open:
                with contextlib.suppress(OSError, AttributeError):  # it is not connected
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def _connect(self) -> Any:
        from tritonclient.grpc import service_pb2_grpc

        with self._connecting:
            if self._stub is None:
                try:
                    self._channel = open_channel(self._url, tls=self._tls)
                except OSError as error:
                    raise ServerGone(f"no TLS with {self._url}: {error}") from error
                self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
            return self._stub

    def is_ready(self) -> bool:
        """Return whether the server accepts requests, and administration if it has a socket for it."""
        from tritonclient.grpc import service_pb2

        with contextlib.suppress(ServingError):
            ready = bool(self._call("ServerReady", service_pb2.ServerReadyRequest(), _SHORT_TIMEOUT_S).ready)
            if ready and self._socket_path is not None:
                self._http("GET", "/v2/health/live", None, _SHORT_TIMEOUT_S)
            return ready
        return False

    def is_live(self, timeout_s: float) -> bool:
        """Return whether gRPC and the administration socket, if there is one, answer at all."""
        from tritonclient.grpc import service_pb2

        try:
            self._call("ServerLive", service_pb2.ServerLiveRequest(), timeout_s)
            if self._socket_path is not None:
                self._http("GET", "/v2/health/live", None, timeout_s)
        except Refused as error:
            return error.status != "DEADLINE_EXCEEDED"
        except ServerGone:
            return False
        return True

    def load(self, model: str, config: dict[str, Any]) -> None:
        """Load a model with `config` in place of its config.pbtxt; return when it serves.

        Args:
            model: name of the model.
            config: fields of Triton's ModelConfig.

        Raises:
            Refused: it can't be loaded; what was served is still served.
            ServerGone: there is no server.
        """
        self._http(
            "POST",
            f"/v2/repository/models/{_quoted(model)}/load",
            {"parameters": {"config": json.dumps(config)}},
            _LOAD_TIMEOUT_S,
        )

    def unload(self, model: str) -> None:
        """Stop serving a model; return when the server has begun to.

        Raises:
            Refused, ServerGone: as `load`.
        """
        self._http("POST", f"/v2/repository/models/{_quoted(model)}/unload", {}, _LOAD_TIMEOUT_S)

    def index(self) -> list[tuple[str, str, str, str]]:
        """Return every version that the server knows: model, version, state (READY, LOADING, …), reason.

        Raises:
            Refused, ServerGone: as `load`.
        """
        answer = self._http("POST", "/v2/repository/index", {}, _SHORT_TIMEOUT_S)
        fields = ("name", "version", "state", "reason")
        rows = [[str(row.get(name, "")) for name in fields] for row in answer or []]
        return [(name, version, state, reason) for name, version, state, reason in rows]

    def versions(self) -> list[tuple[str, str, str, str]]:
        """Return the index, or the versions in the statistics if administration is closed.

        Raises:
            ServerGone: there is no server.
        """
        with contextlib.suppress(ServingError):
            return self.index()
        return [(row.name, row.version, "READY", "") for row in self.statistics()]

    def register_region(self, name: str, key: str, size_bytes: int) -> None:
        """Register a shared-memory region of this host, which the server maps.

        Raises:
            Refused, ServerGone: as `load`.
        """
        body = {"key": key, "offset": 0, "byte_size": size_bytes}
        self._http("POST", f"/v2/systemsharedmemory/region/{_quoted(name)}/register", body, _REGION_TIMEOUT_S)

    def unregister_region(self, name: str) -> None:
        """Unregister a shared-memory region, which the server unmaps.

        Raises:
            Refused, ServerGone: as `load`.
        """
        self._http("POST", f"/v2/systemsharedmemory/region/{_quoted(name)}/unregister", {}, _REGION_TIMEOUT_S)

    def regions(self) -> list[str]:
        """Return the names of the shared-memory regions that clients have registered.

        Raises:
            Refused, ServerGone: as `load`.
        """
        answer = self._http("GET", "/v2/systemsharedmemory/status", None, _REGION_TIMEOUT_S)
        return [str(row.get("name", "")) for row in answer or []]

    def server_version(self) -> str:
        """Return Triton's version.

        Raises:
            Refused, ServerGone: as `load`.
        """
        from tritonclient.grpc import service_pb2

        return str(
            self._call("ServerMetadata", service_pb2.ServerMetadataRequest(), _SHORT_TIMEOUT_S).version
        )

    def statistics(self) -> list[Any]:
        """Return Triton's `ModelStatistics` message of every served version.

        Raises:
            Refused, ServerGone: as `load`.
        """
        from tritonclient.grpc import service_pb2

        return list(
            self._call("ModelStatistics", service_pb2.ModelStatisticsRequest(), _SHORT_TIMEOUT_S).model_stats
        )

    def infer(self, request: Any, timeout_s: float) -> Any:
        """Return the answer to a `service_pb2.ModelInferRequest`.

        Raises:
            Refused, ServerGone: as `load`.
        """
        return self._call("ModelInfer", request, timeout_s)

    def _call(self, method: str, request: Any, timeout_s: float) -> Any:
        import grpc

        try:
            return getattr(self._connect(), method)(request, timeout=timeout_s)
        except grpc.RpcError as error:
            status, words = error_text(error)
            if self._closed or (status in _GONE and not words.startswith("Request for unknown model")):
                raise ServerGone(words) from error
            raise Refused(words, status) from error
        except ValueError as error:  # gRPC raises it for a call on a closed channel
            raise ServerGone("the connection is closed") from error

    def _http(self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float) -> Any:
        """Return the JSON answer of the administration socket; None if it is empty."""
        if self._socket_path is None:
            raise Refused(f"{self._url}: this server has no administration socket", "UNIMPLEMENTED")
        content = None if body is None else json.dumps(body).encode()
        if content is not None and len(content) > _MAX_BYTES:
            raise Refused(f"{len(content):,} bytes are too many for Triton's administration", _STATUS[400])
        connection = _UnixConnection(self._socket_path, timeout_s)
        try:
            with self._connecting:
                if self._closed:
                    raise ServerGone("the connection is closed")
                connection.connect()
                self._open.add(connection)
            connection.request(method, path, content, {"Content-Type": "application/json"} if content else {})
            response = connection.getresponse()
            answer = response.read(_MAX_BYTES + 1)
        except TimeoutError as error:
            if self._closed:
                raise ServerGone("the connection is closed") from error
            raise Refused(f"no answer within {timeout_s:g} s", "DEADLINE_EXCEEDED") from error
        except (OSError, http.client.HTTPException) as error:
            raise ServerGone(str(error) or type(error).__name__) from error
        finally:
            with self._connecting:
                self._open.discard(connection)
            connection.close()
        return _decoded(response.status, answer)


def tls_of(flags: Sequence[str]) -> Tls | None:
    """Return the TLS settings of gRPC from flags for tritonserver; None without TLS.

    Raises:
        UsageError: TLS is on without a certificate and a key.
    """
    values = _values(flags)
    mutual = values.get("--grpc-use-ssl-mutual") in _TRUE
    if not mutual and values.get("--grpc-use-ssl") not in _TRUE:
        return None
    try:
        return Tls(values["--grpc-server-cert"], values["--grpc-server-key"], mutual)
    except KeyError as error:
        raise UsageError(f"serve: TLS on gRPC also needs {error.args[0]} FILE after `--`") from error


def _values(flags: Sequence[str]) -> dict[str, str]:
    """Return the value of each flag, written `--flag=value` or `--flag value`."""
    values, last = {}, ""
    for word in flags:
        if word.startswith("--"):
            last, equals, value = word.partition("=")
            last = last.replace("_", "-")
            values[last] = value if equals else "true"
        elif last:
            values[last] = word
    return values


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _decoded(status: int, answer: bytes) -> Any:
    if len(answer) > _MAX_BYTES:
        raise Refused(f"an answer of more than {_MAX_BYTES:,} bytes", "RESOURCE_EXHAUSTED")
    try:
        content = json.loads(answer) if answer else None
    except ValueError:
        content = None
    if status == http.client.OK:
        return content
    reason = content.get("error") if isinstance(content, dict) else None
    words = " ".join(str(reason or f"HTTP status {status}").split())
    if status == _UNAVAILABLE:
        raise ServerGone(words)
    raise Refused(words, _STATUS.get(status, "INTERNAL"))


def _quoted(name: str) -> str:
    if len(name) > _MAX_NAME:
        raise Refused(f"a name of {len(name)} characters is too long", _STATUS[400])
    return quote(name, safe="")
