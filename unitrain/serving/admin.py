"""What the supervisor asks of its Triton: readiness, loading, unloading and an inference."""

import contextlib
import json
import threading
from typing import Any

from unitrain.errors import ServingError
from unitrain.serving.tls import Tls

_ADMIN_HEADER = "triton-grpc-protocol-admin-key"
_SHORT_S = 2.0
_LOAD_S = 600.0
"""A large model on a slow disk takes minutes."""
_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
_GONE = ("UNAVAILABLE", "CANCELLED")


class ServerGone(ServingError):  # noqa: N818 - it says what happened
    """There is no answer: the server is not there, or this connection was closed."""


class Refused(ServingError):  # noqa: N818 - it says what happened
    """The server answered with an error, in its own words; `status` is gRPC's name for it."""

    def __init__(self, message: str, status: str) -> None:
        super().__init__(message)
        self.status = status


class Admin:
    """A connection to one server, with the secret of its admin protocols; safe in several threads."""

    def __init__(self, url: str, secret: str, tls: Tls | None = None) -> None:
        self._url = url
        self._tls = tls
        self._channel: Any = None
        self._stub: Any = None
        self._metadata = ((_ADMIN_HEADER, secret),)
        self._closed = False
        self._connecting = threading.Lock()

    def close(self) -> None:
        """End the connection; calls under way end with `ServerGone`."""
        self._closed = True
        if self._channel is not None:
            self._channel.close()

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
        """Whether the server takes requests."""
        from tritonclient.grpc import service_pb2

        with contextlib.suppress(ServingError):
            return bool(self._call("ServerReady", service_pb2.ServerReadyRequest(), _SHORT_S).ready)
        return False

    def load(self, model: str, config: dict[str, Any]) -> None:
        """Load a model with `config` in place of its config.pbtxt; returns when it serves.

        Raises:
            Refused: it can't be loaded; what was served stays.
            ServerGone: no server.
        """
        from tritonclient.grpc import service_pb2

        request = service_pb2.RepositoryModelLoadRequest(model_name=model)
        request.parameters["config"].string_param = json.dumps(config)
        self._call("RepositoryModelLoad", request, _LOAD_S)

    def unload(self, model: str) -> None:
        """Stop serving a model; returns when the server has begun to.

        Raises:
            Refused, ServerGone: as `load`.
        """
        from tritonclient.grpc import service_pb2

        self._call(
            "RepositoryModelUnload", service_pb2.RepositoryModelUnloadRequest(model_name=model), _LOAD_S
        )

    def index(self) -> list[tuple[str, str, str, str]]:
        """Every version that the server knows: model, version, state (READY, LOADING, …), reason.

        Raises:
            Refused, ServerGone: as `load`.
        """
        from tritonclient.grpc import service_pb2

        answer = self._call("RepositoryIndex", service_pb2.RepositoryIndexRequest(), _SHORT_S)
        return [(row.name, row.version, row.state, row.reason) for row in answer.models]

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
            return getattr(self._connect(), method)(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            status = error.code().name
            words = " ".join((error.details() or status).split())
            if self._closed or (status in _GONE and not words.startswith("Request for unknown model")):
                raise ServerGone(words) from error
            raise Refused(words, status) from error
        except ValueError as error:  # what gRPC raises for a call on a closed channel
            raise ServerGone("the connection is closed") from error
