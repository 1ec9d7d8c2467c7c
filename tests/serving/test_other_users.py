"""Another user of the machine can query a server, and nothing else."""

import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import ask, shared_memory_of
from onnx_models import publish_model
from time_limits import LIMIT_S
from triton_server import TritonServer

from unitrain.client import Client
from unitrain.serving import server_registry as runtime
from unitrain.serving.admin_client import Admin, Refused, ServerGone
from unitrain.serving.triton import parent_guard as launch

NOBODY = 65534
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


def _admin(triton: TritonServer) -> Admin:
    record = runtime.find_server(triton.url)
    assert record is not None
    return Admin(triton.url, socket_path=Path(record.admin))


def _intrude(triton: TritonServer) -> dict[str, Any]:
    record = runtime.find_server(triton.url)
    assert record is not None
    script = str(Path(__file__).with_name("intruder.py"))
    command = [sys.executable, script, str(NOBODY), triton.url.rpartition(":")[2], record.admin]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@needs_root
def test_another_user_reaches_no_administration(triton: TritonServer) -> None:
    """Not by what the process list shows, tritonclient, HTTP/2 frames made by hand, the socket, or memory."""
    publish_model(triton.repository)
    triton.wait_for("linear", 1)
    found = _intrude(triton)
    assert found["uid"] == NOBODY
    assert found["live"], "the hand-made frames are understood"
    assert found["healthy"], "Kubernetes' gRPC probe is answered"
    assert (found["raw"], found["library"]) == ([], [])
    assert (found["admin"], found["folder"]) == ("PermissionError", False)
    assert "restricted-protocol=shared-memory,model-repository,trace,logging:" in found["command"]
    assert shared_memory_of(triton.pid)
    assert not set(found["memory"]) & set(shared_memory_of(triton.pid))
    assert not Path("/tmp/evil").exists()  # noqa: S108 - what the intruder would have had written
    assert [row[:2] for row in _admin(triton).index()] == [("linear", "1")]
    assert ask(triton.url, np.ones((1, 3)))[1] == 1


def test_the_hand_made_frames_do_open_a_protocol_whose_header_can_be_sent(
    triton_wheel: Path, tmp_path: Path
) -> None:
    """So that it is the name of the header which closes ours."""
    from intruder import raw_call

    from unitrain.serving.triton.distribution import find_triton
    from unitrain.serving.triton.process import Launch, TritonProcess, choose_ports

    grpc_port, metrics_port = choose_ports({"grpc": 0, "metrics": 0}).values()
    (tmp_path / "repository").mkdir()
    launch = Launch(
        find_triton(), tmp_path / "repository", grpc_port or 0, metrics_port or 0, tmp_path / "log",
        flags=("--grpc-restricted-protocol=statistics:open=x",),
    )  # fmt: skip
    process = TritonProcess(launch)
    method, header = "inference.GRPCInferenceService/ModelStatistics", "triton-grpc-protocol-open"
    try:
        admin = Admin(f"127.0.0.1:{grpc_port}")
        while not admin.is_ready():
            assert process.exit_code is None
        assert not raw_call(grpc_port or 0, method, b"")
        assert not raw_call(grpc_port or 0, method, b"", ((header, "y"),))
        assert raw_call(grpc_port or 0, method, b"", ((header, "x"),))
    finally:
        process.kill()


def test_this_user_administers_by_the_socket(triton: TritonServer) -> None:
    """Load, unload, index and shared memory; what is too large or too long is refused before it is sent."""
    publish_model(triton.repository)
    triton.wait_for("linear", 1)
    admin = _admin(triton)
    assert admin.is_live(5)
    assert admin.index() == [("linear", "1", "READY", "")]
    with Client(triton.url) as client:
        rows = [{"x": np.full(3, i, np.float32)} for i in range(20)]
        for result in client.stream("linear", iter(rows), shared_memory=True):
            assert (result.outputs["y"] == 2 * result.index).all()
    assert admin.regions() == []
    with pytest.raises(Refused, match="nowhere"):
        admin.register_region("a region", "/nowhere", 64)
    with pytest.raises(Refused, match="evil"):
        admin.load("evil/../x", {"backend": "evil"})
    with pytest.raises(Refused, match="too long"):
        admin.unload("x" * 10_000)
    with pytest.raises(Refused, match="too many"):
        admin.load("linear", {"name": "x" * (17 << 20)})
    admin.close()
    with pytest.raises(ServerGone):
        admin.index()
    assert ask(triton.url, np.ones((1, 3)))[1] == 1


def test_the_records_and_the_socket_are_this_users_alone(triton: TritonServer) -> None:
    """Files 0600, folders 0700; no value in the record opens anything."""
    record = runtime.find_server(triton.url)
    assert record is not None
    folder = runtime.runtime_dir()
    (file,) = folder.glob(f"*_{triton.url.rpartition(':')[2]}.json")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "secret" not in json.loads(file.read_text())
    socket_path = Path(record.admin)
    assert socket_path.is_socket()
    assert stat.S_IMODE(socket_path.stat().st_mode) & 0o077 == 0
    for path in (folder, socket_path.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_long_runtime_folder_gets_a_socket_in_a_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel takes 107 bytes; the folder is this user's alone there, too."""
    deep = tmp_path / ("größe" * 20)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    folder = runtime.server_dir("unitrain_4194304_0123abcd_")
    assert len(os.fsencode(folder / runtime.ADMIN_NAME)) <= runtime.MAX_SOCKET_PATH
    assert not folder.is_relative_to(deep)
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert folder.parent.owner() == Path(f"/proc/{os.getpid()}").owner()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    short = len(os.fsencode(tmp_path / "unitrain")) < 60
    assert runtime.server_dir("unitrain_1_0_").is_relative_to(tmp_path) or not short


@pytest.fixture
def short_runtime_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder in which the path of a socket is no longer than a socket's path may be."""
    with tempfile.TemporaryDirectory(prefix="rt") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield


@pytest.mark.usefixtures("short_runtime_dir")
def test_folders_of_killed_servers_are_swept() -> None:
    """With a record at once; without one after an hour, since another container's processes are not seen."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    recorded, unrecorded, fresh = (f"unitrain_{gone.pid}_{name}_" for name in ("a", "b", "c"))
    alive = f"unitrain_{os.getpid()}_d_"
    for prefix in (recorded, unrecorded, fresh, alive):
        folder = runtime.server_dir(prefix)
        folder.mkdir(mode=0o700)
        (folder / runtime.ADMIN_NAME).touch()
    os.utime(runtime.server_dir(unrecorded), (1, 1))
    os.utime(runtime.server_dir(alive), (1, 1))
    runtime.ServerRecord(gone.pid, 1, "127.0.0.1:1", "repository", recorded).write()
    runtime.sweep()
    assert sorted(path.name for path in runtime.runtime_dir().iterdir()) == sorted(
        name.strip("_") for name in (fresh, alive)
    )


def test_only_the_call_that_opens_a_file_to_everyone_does_nothing(tmp_path: Path) -> None:
    """Other modes, and other ways to set one, are as ever for the programs that Triton starts."""
    code = (
        "import os, sys; os.umask(0o077)\n"
        "for name, mode in (('open', 0o644), ('group', 0o640), ('program', 0o755)):\n"
        "    handle = os.open(name, os.O_CREAT | os.O_RDWR, 0o600); os.fchmod(handle, mode)\n"
        "os.close(os.open('path', os.O_CREAT, 0o600)); os.chmod('path', 0o644)\n"
    )
    launcher = [sys.executable, "-I", "-S", str(Path(launch.__file__)), str(os.getpid()), "--private-memory"]
    ended = subprocess.run(
        [*launcher, sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        start_new_session=True,  # what it started is ended by its group
    )
    assert ended.stderr == ""
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"open": 0o600, "group": 0o640, "program": 0o755, "path": 0o644}
