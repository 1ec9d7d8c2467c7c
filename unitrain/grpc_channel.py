"""gRPC channel to a Triton server: options, TLS, the text of an error, and strings in tensors."""

import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CONNECT_TIMEOUT_S = 2.0
UNLIMITED = -1


@dataclass(frozen=True)
class Tls:
    """TLS with a server of this machine. Its certificate is trusted directly, without an authority.

    Attributes:
        certificate, key: paths of PEM files.
        mutual: whether the server demands a certificate from clients; it gets its own.
    """

    certificate: str
    key: str
    mutual: bool = False

    def certified_name(self, url: str) -> str:
        """Return the name in the certificate, which need not be the address of the server.

        Raises:
            OSError: there is no server yet, or the files can't be read.
        """
        host, _, port = url.rpartition(":")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(self.certificate)
        context.set_alpn_protocols(["h2"])
        if self.mutual:
            context.load_cert_chain(self.certificate, self.key)
        with (
            socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S) as plain,
            context.wrap_socket(plain) as wrapped,
        ):
            shown: dict[str, Any] = dict(wrapped.getpeercert() or {})
        names = [name for kind, name in shown.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
        common = [value for part in shown.get("subject", ()) for key, value in part if key == "commonName"]
        return str([*names, *common, host][0]).replace("*", "any", 1)


def open_channel(
    url: str, *, max_message_bytes: int = UNLIMITED, proxy: bool = False, tls: Tls | None = None
) -> Any:
    """Open a channel to `host:port`.

    Args:
        url: address of the server, as `host:port`.
        max_message_bytes: maximum size of a message in either direction.
        proxy: whether a proxy of the environment (`http_proxy`) is used.
        tls: TLS settings; None: no encryption.

    Raises:
        OSError: with TLS only: there is no server yet, or the files can't be read.
    """
    import grpc

    options: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        # A new connection must not inherit the backoff of one that has just failed.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", int(proxy)),
    ]
    if tls is None:
        return grpc.insecure_channel(url, options)
    certificate = Path(tls.certificate).read_bytes()
    own = (Path(tls.key).read_bytes(), certificate) if tls.mutual else (None, None)
    credentials = grpc.ssl_channel_credentials(certificate, *own)
    return grpc.secure_channel(
        url, credentials, [*options, ("grpc.ssl_target_name_override", tls.certified_name(url))]
    )


def error_text(error: Any) -> tuple[str, str]:
    """Return the status name of a gRPC error, such as `UNAVAILABLE`, and the server's text in one line."""
    status = error.code().name
    return status, " ".join(str(error.details() or status).split())


def pack_strings(values: Iterable[bytes]) -> bytes:
    """Return the content of a BYTES tensor: each string after its length in four bytes, little-endian."""
    return b"".join(len(value).to_bytes(4, "little") + value for value in values)


def unpack_strings(raw: bytes) -> list[bytes]:
    """Return the strings of a BYTES tensor.

    Raises:
        ValueError: the last string is incomplete.
    """
    values, position = [], 0
    while position < len(raw):
        end = position + 4 + int.from_bytes(raw[position : position + 4], "little")
        if end > len(raw):
            raise ValueError("its strings are cut off")
        values.append(raw[position + 4 : end])
        position = end
    return values
