"""The supervisor's connection to its Triton: readiness, loading, unloading, inference, shared memory.

Requests that any client may make go by gRPC. Administration goes by HTTP over a Unix socket, in a folder
that only this user opens; on TCP it is closed.
"""

import contextlib
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from unitrain.errors import ServingError, UsageError

_ON = frozenset({"true", "1", "True", "TRUE"})
_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Tls:
    """The certificate of a server of this machine, which is trusted by itself: it is our own.

    Attributes:
        certificate, key: PEM files.
        mutual: whether the server asks for a certificate too; it is shown its own.
    """

    certificate: str
    key: str
    mutual: bool = False

    def channel(self, url: str, options: list[tuple[str, Any]]) -> Any:
        """A gRPC channel to `url`.

        Raises:
            OSError: the server is not there yet, or the files can't be read.
        """
        import grpc

        certificate = Path(self.certificate).read_bytes()
        own = (Path(self.key).read_bytes(), certificate) if self.mutual else (None, None)
        credentials = grpc.ssl_channel_credentials(certificate, *own)
        return grpc.secure_channel(
            url, credentials, [*options, ("grpc.ssl_target_name_override", self._name(url))]
        )

    def _name(self, url: str) -> str:
        """The name that the certificate is made out to, whatever address the server is asked at."""
        host, _, port = url.rpartition(":")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(self.certificate)
        context.set_alpn_protocols(["h2"])
        if self.mutual:
            context.load_cert_chain(self.certificate, self.key)
        with (
            socket.create_connection((host, int(port)), timeout=_TIMEOUT_S) as plain,
            context.wrap_socket(plain) as wrapped,
        ):
            shown: dict[str, Any] = dict(wrapped.getpeercert() or {})
        names = [name for kind, name in shown.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
        common = [value for part in shown.get("subject", ()) for key, value in part if key == "commonName"]
        return str([*names, *common, host][0]).replace("*", "any", 1)


def tls_of(flags: Sequence[str]) -> Tls | None:
    """What the flags for tritonserver say of TLS on gRPC; None where it is off.

    Raises:
        UsageError: it is on without a certificate and a key.
    """
    values = _values(flags)
    mutual = values.get("--grpc-use-ssl-mutual") in _ON
    if not mutual and values.get("--grpc-use-ssl") not in _ON:
        return None
    try:
        return Tls(values["--grpc-server-cert"], values["--grpc-server-key"], mutual)
    except KeyError as error:
        raise UsageError(f"serve: TLS on gRPC needs {error.args[0]} FILE after `--` too") from error


def _values(flags: Sequence[str]) -> dict[str, str]:
    """The value of each flag, written `--flag=value` or `--flag value`."""
    values, last = {}, ""
    for word in flags:
        if word.startswith("--"):
            last, equals, value = word.partition("=")
            last = last.replace("_", "-")
            values[last] = value if equals else "true"
        elif last:
            values[last] = word
    return values


_SHORT_S = 2.0
_REGION_S = 10.0
"""A region that is not given back in time stays mapped until the next client."""
_LOAD_S = 600.0
"""A large model on a slow disk takes minutes."""
_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
_GONE = ("UNAVAILABLE", "CANCELLED")
_LARGEST_BYTES = 16 << 20
"""Of what is sent to the administration socket, and of its answer."""
_LONGEST_NAME = 512
_STATUS = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 409: "ALREADY_EXISTS", 501: "UNIMPLEMENTED"}
_UNAVAILABLE = 503


class ServerGone(ServingError):  # noqa: N818 - it says what happened
    """There is no answer: the server is not there, or this connection was closed."""


class Refused(ServingError):  # noqa: N818 - it says what happened
    """The server answered with an error, in its own words; `status` is gRPC's name for it."""

    def __init__(self, message: str, status: str) -> None:
        super().__init__(message)
        self.status = status


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Admin:
    """A connection to one server; safe in several threads.

    Args:
        url: `host:port` of gRPC.
        tls: how gRPC is encrypted; None: it is not.
        socket_path: the administration socket; None: nothing can be loaded, unloaded or registered.
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
        """End the connection; calls under way end with `ServerGone`."""
        self._closed = True
        if self._channel is not None:
            self._channel.close()
        with self._connecting:
            for connection in self._open:
                with contextlib.suppress(OSError, AttributeError):  # it is not connected, or no longer
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def _connect(self) -> Any:
        import grpc
        from tritonclient.grpc import service_pb2_grpc

        with self._connecting:
            if self._stub is None:
                options = [*_OPTIONS]
                try:
                    self._channel = (
                        self._tls.channel(self._url, options)
                        if self._tls
                        else grpc.insecure_channel(self._url, options)
                    )
                except OSError as error:
                    raise ServerGone(f"no TLS with {self._url}: {error}") from error
                self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
            return self._stub

    def is_ready(self) -> bool:
        """Whether the server takes requests, and administration where it has a socket for it."""
        from tritonclient.grpc import service_pb2

        with contextlib.suppress(ServingError):
            ready = bool(self._call("ServerReady", service_pb2.ServerReadyRequest(), _SHORT_S).ready)
            if ready and self._socket_path is not None:
                self._http("GET", "/v2/health/live", None, _SHORT_S)
            return ready
        return False

    def is_live(self, timeout_s: float) -> bool:
        """Whether gRPC and the administration socket, where there is one, answer at all."""
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
        """Load a model with `config` in place of its config.pbtxt; returns when it serves.

        Raises:
            Refused: it can't be loaded; what was served stays.
            ServerGone: no server.
        """
        self._http(
            "POST",
            f"/v2/repository/models/{_quoted(model)}/load",
            {"parameters": {"config": json.dumps(config)}},
            _LOAD_S,
        )

    def unload(self, model: str) -> None:
        """Stop serving a model; returns when the server has begun to.

        Raises:
            Refused, ServerGone: as `load`.
        """
        self._http("POST", f"/v2/repository/models/{_quoted(model)}/unload", {}, _LOAD_S)

    def index(self) -> list[tuple[str, str, str, str]]:
        """Every version that the server knows: model, version, state (READY, LOADING, …), reason.

        Raises:
            Refused, ServerGone: as `load`.
        """
        answer = self._http("POST", "/v2/repository/index", {}, _SHORT_S)
        fields = ("name", "version", "state", "reason")
        rows = [[str(row.get(name, "")) for name in fields] for row in answer or []]
        return [(name, version, state, reason) for name, version, state, reason in rows]

    def versions(self) -> list[tuple[str, str, str, str]]:
        """The index; from a server whose administration is closed, the versions that its statistics name.

        Raises:
            ServerGone: no server.
        """
        with contextlib.suppress(ServingError):
            return self.index()
        return [(row.name, row.version, "READY", "") for row in self.statistics()]

    def register_region(self, name: str, key: str, size_bytes: int) -> None:
        """Have the server map a shared-memory region of this host.

        Raises:
            Refused, ServerGone: as `load`.
        """
        body = {"key": key, "offset": 0, "byte_size": size_bytes}
        self._http("POST", f"/v2/systemsharedmemory/region/{_quoted(name)}/register", body, _REGION_S)

    def unregister_region(self, name: str) -> None:
        """Have the server let go of a shared-memory region.

        Raises:
            Refused, ServerGone: as `load`.
        """
        self._http("POST", f"/v2/systemsharedmemory/region/{_quoted(name)}/unregister", {}, _REGION_S)

    def regions(self) -> list[str]:
        """Names of the shared-memory regions that clients have registered.

        Raises:
            Refused, ServerGone: as `load`.
        """
        answer = self._http("GET", "/v2/systemsharedmemory/status", None, _REGION_S)
        return [str(row.get("name", "")) for row in answer or []]

    def server_version(self) -> str:
        """Triton's version.

        Raises:
            Refused, ServerGone: as `load`.
        """
        from tritonclient.grpc import service_pb2

        return str(self._call("ServerMetadata", service_pb2.ServerMetadataRequest(), _SHORT_S).version)

    def statistics(self) -> list[Any]:
        """Triton's `ModelStatistics` message of every version that is served.

        Raises:
            Refused, ServerGone: as `load`.
        """
        from tritonclient.grpc import service_pb2

        return list(self._call("ModelStatistics", service_pb2.ModelStatisticsRequest(), _SHORT_S).model_stats)

    def infer(self, request: Any, timeout_s: float) -> Any:
        """The answer to a `service_pb2.ModelInferRequest`.

        Raises:
            Refused, ServerGone: as `load`.
        """
        return self._call("ModelInfer", request, timeout_s)

    def _call(self, method: str, request: Any, timeout_s: float) -> Any:
        import grpc

        try:
            return getattr(self._connect(), method)(request, timeout=timeout_s)
        except grpc.RpcError as error:
            status = error.code().name
            words = " ".join((error.details() or status).split())
            if self._closed or (status in _GONE and not words.startswith("Request for unknown model")):
                raise ServerGone(words) from error
            raise Refused(words, status) from error
        except ValueError as error:  # what gRPC raises for a call on a closed channel
            raise ServerGone("the connection is closed") from error

    def _http(self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float) -> Any:
        """The JSON answer of the administration socket; None where it has none."""
        if self._socket_path is None:
            raise Refused(f"{self._url}: this server has no administration socket", "UNIMPLEMENTED")
        content = None if body is None else json.dumps(body).encode()
        if content is not None and len(content) > _LARGEST_BYTES:
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
            said = response.read(_LARGEST_BYTES + 1)
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
        return _answer(response.status, said)


def _answer(status: int, said: bytes) -> Any:
    if len(said) > _LARGEST_BYTES:
        raise Refused(f"an answer of more than {_LARGEST_BYTES:,} bytes", "RESOURCE_EXHAUSTED")
    try:
        content = json.loads(said) if said else None
    except ValueError:
        content = None
    if status == http.client.OK:
        return content
    told = content.get("error") if isinstance(content, dict) else None
    words = " ".join(str(told or f"HTTP status {status}").split())
    if status == _UNAVAILABLE:
        raise ServerGone(words)
    raise Refused(words, _STATUS.get(status, "INTERNAL"))


def _quoted(name: str) -> str:
    if len(name) > _LONGEST_NAME:
        raise Refused(f"a name of {len(name)} characters is too long", _STATUS[400])
    return quote(name, safe="")
