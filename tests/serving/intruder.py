"""Run by tests as another user of the machine: what it can do to a server, as JSON on standard output.

    python intruder.py UID GRPC_PORT ADMIN_SOCKET

It imports what it needs, becomes the other user, and attacks.
"""

import encodings.idna  # noqa: F401 - as another user the interpreter may be out of reach
import json
import os
import socket
import struct
import sys
from pathlib import Path
from typing import Any

import tritonclient.grpc as triton_grpc
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

HEADERS, DATA, SETTINGS, RST_STREAM, GOAWAY = 1, 0, 4, 3, 7
LIMIT_S = 600.0  # as in time_limits, which a script in this folder does not find
LIBRARY = "file:1/libtriton_evil.so"
WRITTEN = "/tmp/evil"  # noqa: S108 - what Triton would write
ENVIRONMENT = "/tmp/e.tar.gz"  # noqa: S108 - as above


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _literal(name: str, value: str) -> bytes:
    """An HPACK header field as it stands: not indexed, not Huffman coded, not checked."""
    return bytes([0, len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def raw_call(port: int, method: str, message: bytes, headers: tuple[tuple[str, str], ...] = ()) -> bool:
    """Whether a gRPC call by hand-made HTTP/2 frames got an answer; an error has headers alone, or resets."""
    fields = [(":method", "POST"), (":scheme", "http"), (":path", f"/{method}"), (":authority", "x")]
    fields += [("te", "trailers"), ("content-type", "application/grpc"), *headers]
    sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(SETTINGS, 0, 0, b"")
    sent += _frame(HEADERS, 4, 1, b"".join(_literal(*field) for field in fields))
    sent += _frame(DATA, 1, 1, b"\0" + struct.pack(">I", len(message)) + message)
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as connection:
        connection.sendall(sent)
        received = connection.makefile("rb")
        while len(head := received.read(9)) == 9:
            kind, flags = head[3], head[4]
            payload = received.read(int.from_bytes(head[:3], "big"))
            if kind == DATA and payload:
                return True
            if kind in (RST_STREAM, GOAWAY) or (kind == HEADERS and flags & 1):
                return False
            if kind == SETTINGS and not flags & 1:
                connection.sendall(_frame(SETTINGS, 1, 0, b""))
    return False


def _messages() -> dict[str, bytes]:
    """Each attack as a message of Triton's gRPC service, by method and a word."""
    found: dict[str, Any] = {}
    for word, extra in (
        ("python", {"backend": "python"}),
        ("library", {"backend": "evil"}),
        (
            "env",
            {"backend": "python", "parameters": {"EXECUTION_ENV_PATH": {"string_value": ENVIRONMENT}}},
        ),
    ):
        load = service_pb2.RepositoryModelLoadRequest(model_name="evil")
        load.parameters["config"].string_param = json.dumps({"name": "evil", "max_batch_size": 0, **extra})
        load.parameters[LIBRARY].bytes_param = b"\x7fELF"
        load.parameters["file:1/model.py"].bytes_param = b"raise SystemExit"
        found[f"RepositoryModelLoad {word}"] = load
    found["RepositoryModelUnload linear"] = service_pb2.RepositoryModelUnloadRequest(model_name="linear")
    found["RepositoryIndex all"] = service_pb2.RepositoryIndexRequest()
    found["SystemSharedMemoryStatus all"] = service_pb2.SystemSharedMemoryStatusRequest()
    found["SystemSharedMemoryRegister file"] = service_pb2.SystemSharedMemoryRegisterRequest(
        name="evil", key="/evil", byte_size=64
    )
    found["SystemSharedMemoryUnregister all"] = service_pb2.SystemSharedMemoryUnregisterRequest()
    found["CudaSharedMemoryStatus all"] = service_pb2.CudaSharedMemoryStatusRequest()
    trace = service_pb2.TraceSettingRequest()
    trace.settings["trace_file"].value.append(WRITTEN)
    found["TraceSetting file"] = trace
    log = service_pb2.LogSettingsRequest()
    log.settings["log_file"].string_param = WRITTEN
    found["LogSettings file"] = log
    return {name: message.SerializeToString() for name, message in found.items()}


def _headers(command: str) -> list[tuple[str, str]]:
    """What the command line says that opens the protocols, in each way of writing it; an empty name: nothing."""
    opens = command.partition("--grpc-restricted-protocol=")[2].partition("\0")[0].partition(":")[2]
    name, _, value = opens.partition("=")
    name = f"triton-grpc-protocol-{name}"
    written = (name, name.lower(), name.upper(), name.replace(" ", "-"), name.replace(" ", "-").lower())
    return [("", ""), *((each, value) for each in dict.fromkeys(written))]


def _by_library(url: str, headers: list[tuple[str, str]]) -> list[str]:
    """Attacks by tritonclient that were not refused as restricted."""
    client = triton_grpc.InferenceServerClient(url)
    calls = {
        "load": lambda h: client.load_model(
            "evil", h, json.dumps({"backend": "evil"}), {LIBRARY: b"\x7fELF"}
        ),
        "unload": lambda h: client.unload_model("linear", h),
        "register": lambda h: client.register_system_shared_memory("evil", "/evil", 64, headers=h),
        "trace": lambda h: client.update_trace_settings(None, {"trace_file": WRITTEN}, h),
        "log": lambda h: client.update_log_settings({"log_file": WRITTEN}, h),
    }
    open_calls = []
    for name, call in calls.items():
        for header, value in headers:
            try:
                call({header: value} if header else None)
                open_calls.append(f"{name} {header}")
            except InferenceServerException as error:
                # gRPC's own client does not even send a header whose name is invalid.
                if "restricted" not in str(error) and "Invalid metadata" not in str(error):
                    open_calls.append(f"{name} {header}: {error}")
    return open_calls


def _connects(path: str) -> str:
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
    except OSError as error:
        return type(error).__name__
    return "connected"


def _readable(folder: Path) -> list[str]:
    """Names in a folder that this user can open for reading."""
    found = []
    for path in folder.iterdir():
        try:
            with path.open("rb"):
                found.append(path.name)
        except OSError:
            continue
    return found


def main() -> None:
    """Attack, and print what was open."""
    uid, port, admin = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    messages = _messages()
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    service = "inference.GRPCInferenceService"
    lines = [
        path.read_bytes().decode(errors="replace")
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if path.is_file()
    ]
    command = next((line for line in lines if f"--grpc-port={port}\0" in line), "")
    headers = _headers(command)
    found = {
        "uid": os.getuid(),
        "live": raw_call(port, f"{service}/ServerLive", b""),
        "healthy": raw_call(port, "grpc.health.v1.Health/Check", b""),
        "raw": [
            f"{name} {header}"
            for name, message in messages.items()
            for header, value in headers
            if raw_call(port, f"{service}/{name.split()[0]}", message, ((header, value),) if header else ())
        ],
        "library": _by_library(f"127.0.0.1:{port}", headers),
        "admin": _connects(admin),
        "folder": os.access(Path(admin).parent, os.R_OK | os.X_OK)
        or os.access(Path(admin).parents[1], os.X_OK),
        "memory": _readable(Path("/dev/shm")),  # noqa: S108 - where it lies
        "command": command.replace("\0", " "),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
