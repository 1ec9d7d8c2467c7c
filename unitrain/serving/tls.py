"""The supervisor's own way into a Triton that was told, after `--`, to speak TLS only."""

import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unitrain.errors import UsageError

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
