"""Which Triton is taken, why, and the plain command for each way."""

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from asking import answers
from onnx_models import publish_model
from triton_server import TritonServer, native_tritonserver

from unitrain import doctor as diagnosis
from unitrain.errors import ServingError, UsageError
from unitrain.serving import server_registry as runtime
from unitrain.serving.status import server_status
from unitrain.serving.triton import host_requirements as host
from unitrain.serving.triton.distribution import IMAGE, check_image, find_triton, network_problem
from unitrain.serving.triton.wheel import sweep_backends

GOOD = host.Host(
    system="Linux",
    machine="x86_64",
    glibc=(2, 35),
    python=(3, 11),
    has_libpython=True,
    base_prefix="/usr",
    has_python3=True,
    python_dir=Path("/venv/bin"),
    cache_dir=Path("/home/me/.cache/unitrain"),
)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"machine": "aarch64"}, "Linux on x86_64, this is Linux on aarch64"),
        ({"system": "Darwin"}, "this is Darwin on x86_64"),
        ({"glibc": (2, 31)}, "glibc 2.35 or newer, this system has 2.31"),
        ({"glibc": None}, "another C library"),
        ({"python": (3, 14)}, "with Python 3.11, 3.12, 3.13, this is 3.14"),
        ({"has_libpython": False}, "libpython3.11.so.1.0, which this Python (/usr) was built without"),
        ({"has_python3": False}, "/venv/bin has none"),
        ({"cache_dir": Path("/home/my cache")}, "the cache folder '/home/my cache'"),
    ],
)
def test_a_host_that_cannot_run_the_wheel_is_told_why_and_what_to_do(
    change: dict[str, object], words: str
) -> None:
    """One sentence for each cause, with a way out."""
    problem = dataclasses.replace(GOOD, **change).problem()
    assert problem is not None
    assert words in problem
    assert any(way_out in problem for way_out in ("use ", "run unitrain from", "set UNITRAIN_CACHE"))


def test_a_good_host_has_no_problem() -> None:
    """Neither has this one, on which the tests of Triton run."""
    assert GOOD.problem() is None
    assert host.this_host().problem() is None


def test_serve_and_doctor_say_the_same_of_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is fetched or started."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    poor = dataclasses.replace(GOOD, has_libpython=False)
    monkeypatch.setattr("unitrain.serving.triton.host_requirements.this_host", lambda: poor)
    with pytest.raises(ServingError, match=r"libpython3\.11"):
        find_triton()
    [found] = diagnosis.diagnose(["triton"], start_triton=False)
    assert (found.status, found.text) == ("warn", poor.problem())


def _recorder(folder: Path, name: str, *, exit_code: int = 0) -> Path:
    """A program that notes its arguments, one a line, in FOLDER/NAME.log, and ends or waits for SIGTERM."""
    program = folder / name
    program.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" "--" >> {folder}/{name}.log\n'
        f'[ "$1" = kill ] && exit 0\n'
        f"[ {exit_code} -ne 0 ] && echo 'error: no such image' >&2 && exit {exit_code}\n"
        "exec sleep 600\n"
    )
    program.chmod(0o755)
    return folder / f"{name}.log"


def _serve(*options: str, path: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "unitrain", "serve", *options],
        env=os.environ | environment | ({"PATH": f"{path}:{os.environ['PATH']}"} if path else {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_docker_gets_the_repository_read_only_and_loopback_ports(tmp_path: Path) -> None:
    """The flags for Triton are those of a native one, but for the paths and addresses inside."""
    log = _recorder(tmp_path, "docker", exit_code=125)
    ports = ("--grpc-port", "0", "--metrics-port", "0")
    repository = tmp_path / "repository"
    ended = _serve("--container", "docker", *ports, "--model-repository", str(repository), path=tmp_path)
    assert ended.returncode == 1
    assert "no such image" in ended.stderr
    words = log.read_text().partition("\n--\n")[0].splitlines()
    assert words[:2] == ["run", "--rm"]
    assert f"--volume={repository}:/models:ro" in words
    published = [word for word in words if word.startswith("--publish=")]
    assert len(published) == 2
    assert all(word.startswith("--publish=127.0.0.1:") for word in published)
    inside = words[words.index(IMAGE) + 1 :]
    assert inside[:3] == ["tritonserver", "--model-repository=/models", "--model-control-mode=explicit"]
    assert "--grpc-address=0.0.0.0" in inside
    (admin,) = [word for word in words if word.endswith(":/run/unitrain")]
    assert Path(admin.removeprefix("--volume=").partition(":")[0]).is_relative_to(runtime.runtime_dir())
    assert "--http-address=unix:/run/unitrain/admin" in inside
    assert "--allow-client-shm=true" in inside, "26.05 and newer need it"
    assert "--disable-auto-complete-config" in inside


def test_a_container_is_ended_by_its_name_with_serve(tmp_path: Path) -> None:
    """Also when `serve` is killed: Docker's client is not the container."""
    log = _recorder(tmp_path, "docker")
    ports = ("--grpc-port", "0", "--metrics-port", "0")
    command = [sys.executable, "-m", "unitrain", "serve", "--container", "docker", *ports]
    process = subprocess.Popen(
        [*command, "--model-repository", str(tmp_path / "repository")],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 20
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.kill()
    process.wait()
    name = next(word for word in log.read_text().splitlines() if word.startswith("--name="))
    while "kill\n" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert f"kill\n{name.removeprefix('--name=')}\n" in log.read_text()


def test_apptainer_runs_the_image_in_the_machines_own_network(tmp_path: Path) -> None:
    """It binds the repository read only, and listens on loopback as a native one does."""
    log = _recorder(tmp_path, "apptainer", exit_code=1)
    ports = ("--grpc-port", "0", "--metrics-port", "0")
    repository = tmp_path / "repository"
    image = "nvcr.io/nvidia/tritonserver:26.08-py3"
    ended = _serve(
        "--container",
        "apptainer",
        "--image",
        image,
        *ports,
        "--model-repository",
        str(repository),
        path=tmp_path,
    )
    assert ended.returncode == 1
    words = log.read_text().splitlines()
    assert words[:2] == ["exec", "--cleanenv"]
    assert f"{repository}:/models:ro" in words
    assert f"docker://{image}" in words
    assert [word for word in words if word.endswith(":/run/unitrain")]
    assert "--allow-client-shm=true" in words
    assert "--grpc-address=127.0.0.1" in words


def test_an_image_older_than_the_fixes_is_refused() -> None:
    """One whose tag tells no release is the person's own affair."""
    with pytest.raises(UsageError, match=r"26\.07 or newer"):
        check_image("nvcr.io/nvidia/tritonserver:26.06-py3")
    check_image("nvcr.io/nvidia/tritonserver:26.07-py3")
    check_image("registry.example.org/triton:mine")


def test_a_container_runtime_that_is_not_there_is_told(tmp_path: Path) -> None:
    """One sentence, exit 1."""
    ended = _serve("--container", "apptainer", PATH=str(tmp_path))
    assert ended.returncode == 1
    assert "no program `apptainer` on PATH" in ended.stderr


def test_only_a_triton_with_the_fixes_may_face_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container, or a native one that says its release; never the wheel's."""
    _recorder(tmp_path, "tritonserver")
    assert network_problem("docker") is None
    monkeypatch.setenv("PATH", os.defpath)
    assert "older than the security fixes" in (network_problem(None) or "")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("NVIDIA_TRITON_SERVER_VERSION", raising=False)
    assert "does not tell" in (network_problem(None) or "")
    monkeypatch.setenv("NVIDIA_TRITON_SERVER_VERSION", "26.06")
    assert "(26.06) is older" in (network_problem(None) or "")
    monkeypatch.setenv("NVIDIA_TRITON_SERVER_VERSION", "26.07")
    assert network_problem(None) is None


def test_the_choice_and_its_reason_are_told_first(triton: TritonServer) -> None:
    """Before Triton is ready."""
    first = triton.events()[0]
    assert (first["event"], first["way"]) == ("triton", "wheel")
    assert first["reason"] == "no `tritonserver` on PATH, and the wheel is in the cache"


def test_print_gives_a_plain_command_for_each_way_that_a_shell_can_run(
    triton_wheel: Path, tmp_path: Path
) -> None:
    """The wheel's is run here, and serves by polling, without unitrain."""
    publish_model(tmp_path / "repository")
    ports = ("--grpc-port", "18841", "--metrics-port", "18842")
    told = _serve("--print", "--json", *ports, "--model-repository", str(tmp_path / "repository"))
    assert told.returncode == 0
    ways = {way["name"]: way for way in json.loads(told.stdout)}
    assert list(ways) == ["native", "wheel", "docker", "apptainer"]
    assert [name for name, way in ways.items() if way["chosen"]] == ["wheel"]
    assert ways["native"]["reason"] == "no `tritonserver` on PATH here"
    assert ways["docker"]["command"].split()[1] == "run"
    assert all("--model-control-mode=poll" in way["command"] for way in ways.values())
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(["sh", "-c", f"exec {ways['wheel']['command']}"], stdout=log, stderr=log)
        try:
            assert answers("127.0.0.1:18841", within_s=30)
        finally:
            process.terminate()
            process.wait(30)


def test_print_without_any_triton_tells_how_to_install_one(tmp_path: Path) -> None:
    """In the line of the wheel."""
    told = _serve("--print", UNITRAIN_CACHE=str(tmp_path / "cache"))
    assert told.returncode == 0
    assert "# wheel: not installed: python -m unitrain serve --install" in told.stdout


@pytest.mark.parametrize("option", [("--poll",), ("--http-port", "8000")])
def test_options_of_earlier_releases_name_what_replaces_them(option: tuple[str, ...]) -> None:
    """`serve --print` has the plain command that polls, and serves HTTP."""
    ended = _serve(*option)
    assert ended.returncode == 2
    assert option[0] in ended.stderr
    assert "`python -m unitrain serve --print" in ended.stderr


def test_printed_command_closes_administration_over_http(triton_wheel: Path, tmp_path: Path) -> None:
    """It serves HTTP to clients; nobody at all administers it, whatever header is sent."""
    publish_model(tmp_path / "repository")
    native = native_tritonserver(tmp_path / "bin")
    ports = ("--grpc-port", "18844", "--metrics-port", "18845", "--http-port", "18846")
    printed = _serve(
        "--print", "--json", *ports, "--model-repository", str(tmp_path / "repository"), path=native.parent
    )
    ways = {way["name"]: way for way in json.loads(printed.stdout)}
    assert ways["native"]["chosen"]
    assert "--http-port=18846" in ways["docker"]["command"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(["sh", "-c", f"exec {ways['native']['command']}"], stdout=log, stderr=log)
        try:
            assert answers("127.0.0.1:18844", within_s=60)
            http = "127.0.0.1:18846"
            with urllib.request.urlopen(f"http://{http}/v2/health/ready", timeout=5) as answer:
                assert answer.status == 200
            assert _raw_http(http, b"GET /v2/health/ready", b"").startswith(b"HTTP/1.1 200")
            for header in (b"", *(b"%b: %b\r\n" % (name, value) for name in _NAMES for value in _VALUES)):
                for path in (
                    b"POST /v2/repository/index",
                    b"GET /v2/logging",
                    b"GET /v2/systemsharedmemory/status",
                ):
                    assert not _raw_http(http, path, header).startswith(b"HTTP/1.1 200")
            assert server_status("127.0.0.1:18844").versions[0].state == "READY"
        finally:
            process.terminate()
            process.wait(30)


_NAMES = (b"CLOSED TO EVERYONE", b"closed to everyone", b"CLOSED-TO-EVERYONE")
_VALUES = (b"", b"\n", b"\r\n ", b"%0A", b"x\n\n", b"\n x")


def _raw_http(url: str, line: bytes, header: bytes) -> bytes:
    host, _, port = url.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(
            line + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n" + header + b"\r\n"
        )
        with contextlib.suppress(OSError):  # it is closed, or more of the header is waited for
            return connection.recv(1024)
    return b""


def test_flags_of_releases_that_do_not_know_them_are_omitted(tmp_path: Path) -> None:
    """Client shared memory is switched on by a flag from 26.05 on; HTTP is a Unix socket in each."""
    _recorder(tmp_path, "tritonserver", exit_code=1)
    ports = ("--grpc-port", "0", "--metrics-port", "0", "--json")
    for release in ("", "25.06"):
        _serve(
            *ports, "--model-repository", str(tmp_path / "repository"), path=tmp_path,
            NVIDIA_TRITON_SERVER_VERSION=release,
        )  # fmt: skip
    words = (tmp_path / "tritonserver.log").read_text()
    assert "--http-address=unix:" in words
    assert "--http-port" not in words
    assert "--allow-client-shm" not in words, "older ones do not know the flag"


def test_backends_of_earlier_unitrains_are_swept_once_nobody_runs_them(
    triton: TritonServer, tmp_path: Path
) -> None:
    """One that is used stays however old it is; so does one of today."""
    used = find_triton().backends_dir
    assert used is not None
    publish_model(triton.repository)
    triton.wait_for("linear", 1)
    old, fresh = tmp_path / "backends-3.11-old", tmp_path / "backends-3.11-fresh"
    for folder in (old, fresh):
        folder.mkdir()
    os.utime(old, (1, 1))
    assert sweep_backends(tmp_path / "backends-3.11-now") == [old]
    assert fresh.is_dir()
    before = used.stat()
    os.utime(used, (1, 1))
    try:
        assert used not in sweep_backends(used.parent / "backends-3.11-other", unused_s=time.time() - 10)
    finally:
        os.utime(used, (before.st_atime, before.st_mtime))
    assert used.is_dir()
