"""Triton is kept alive while `serve` runs, and is gone when it ends."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from asking import Load, answers, ask, group_members, shared_memory_of, stubs
from onnx_models import publish_broken, publish_model
from slow_cases import slow_after
from time_limits import LIMIT_S, wait_until
from triton_server import TritonServer

from unitrain.serving import server_registry as runtime
from unitrain.serving.status import server_status
from unitrain.serving.triton.distribution import find_triton
from unitrain.serving.triton.process import LOOPBACK, choose_ports
from unitrain.serving.triton.system_processes import command_lines

STOP_S = 5.0
"""Seconds that `serve` needs to exit on a quiet machine."""


def _serve(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "unitrain", "serve", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def test_a_killed_stub_is_noticed_and_its_model_served_again(triton: TritonServer) -> None:
    """Triton still calls such a model ready: only a real inference shows it."""
    publish_model(triton.repository)
    triton.wait_for("linear", 1)
    triton_pid = triton.triton_pid
    (stub,) = stubs(triton_pid)
    seen = len(triton.events())
    os.kill(stub, signal.SIGKILL)
    triton.wait_for_event("unhealthy", after=seen)
    triton.wait_for_event("loaded", after=seen)
    assert answers(triton.url)
    assert triton.triton_pid == triton_pid, "reloading is enough, a restart is not needed"


def test_a_killed_triton_is_started_again_and_serves_what_it_served(triton: TritonServer) -> None:
    """The same address answers again, with the newest versions."""
    publish_model(triton.repository, scale=2)
    publish_model(triton.repository, scale=3)
    triton.wait_for("linear", 2)
    seen = len(triton.events())
    os.kill(triton.triton_pid, signal.SIGKILL)
    triton.wait_for_event("restarting", after=seen)
    triton.wait_for_event("loaded", after=seen)
    assert ask(triton.url, np.ones((1, 3)))[1] == 2


def _pass(result: object, error: object) -> None:
    """Take an answer and do nothing with it."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_streams_open_and_leaves_nothing(
    triton_wheel: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Exit 0 soon after the grace; no process, shared memory or record stays."""
    triton = TritonServer(tmp_path / "repository", log=tmp_path / "log").start()
    publish_model(triton.repository)
    triton.wait_for("linear", 1)
    record = runtime.find_server(triton.url)
    assert record is not None
    assert record.pid == triton.pid
    assert shared_memory_of(triton.pid)
    group = triton.triton_pid
    with triton_grpc.InferenceServerClient(triton.url) as client:
        client.start_stream(callback=_pass)
        began = time.monotonic()
        assert triton.stop_by(number) == 0
        assert time.monotonic() - began < 10 * STOP_S
        client.stop_stream(cancel_requests=True)
    assert triton.events()[-1]["event"] == "stopped"
    assert group_members(group) == []
    assert shared_memory_of(triton.pid) == []
    assert runtime.find_server(triton.url) is None
    assert not list(runtime.runtime_dir().glob(f"*_{triton.url.rpartition(':')[2]}.json"))


def test_a_closed_terminal_ends_it_and_leaves_nothing(triton_wheel: Path, tmp_path: Path) -> None:
    """The system tells the programs of a terminal that it has gone by SIGHUP; a stub that is dead does not hold it up."""
    repository, told = tmp_path / "repository", tmp_path / "told"
    publish_model(repository)
    leader, follower = pty.openpty()
    # `setsid` makes the terminal on stdin the one that controls it.
    command = [
        "env",
        "--default-signal=HUP",
        "setsid",
        "--ctty",
        sys.executable,
        "-m",
        "unitrain",
        "serve",
        "--json",
        "--grpc-port",
        "0",
    ]
    command += ["--metrics-port", "0"]
    with told.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--model-repository", str(repository), "--log-file", str(tmp_path / "log")],
            stdin=follower, stdout=file, stderr=file,
        )  # fmt: skip
    os.close(follower)
    wait_until(lambda: b'"loaded"' in told.read_bytes(), "no model was loaded")
    events = [json.loads(line) for line in told.read_text().splitlines()]
    group = next(event["triton_pid"] for event in events if event["event"] == "ready")
    os.kill(stubs(group)[0], signal.SIGKILL)
    began = time.monotonic()
    os.close(leader)
    assert process.wait(LIMIT_S) == 0
    assert time.monotonic() - began < 10 * STOP_S
    assert group_members(group) == []
    assert shared_memory_of(process.pid) == []


def test_what_killed_tritons_left_in_tmp_is_swept(triton_wheel: Path, tmp_path: Path) -> None:
    """The folder that each makes there is removed by a later start, or by this one's own end."""
    before = set(Path("/tmp").glob("python_env_??????"))  # noqa: S108 - where Triton makes them
    server = TritonServer(tmp_path / "repository", log=tmp_path / "log", options=("--grace", "0")).start()
    publish_model(server.repository)
    server.wait_for("linear", 1)
    made = set(Path("/tmp").glob("python_env_??????")) - before  # noqa: S108 - as above
    assert made
    server.stop()
    # Beside the Tritons of other tests it must not be told apart from theirs: then the next start sweeps.
    others = [words for words in command_lines().values() if "tritonserver --model-repository" in words]
    assert others or not made & set(Path("/tmp").glob("python_env_??????"))  # noqa: S108 - as above


def test_triton_dies_with_a_killed_serve_and_the_next_one_sweeps_up(
    triton: TritonServer, tmp_path: Path
) -> None:
    """Even kill -9 leaves no orphan; what it left lying is removed by the next start."""
    publish_model(triton.repository)
    triton.wait_for("linear", 1)
    group = triton.triton_pid
    record = runtime.find_server(triton.url)
    assert record is not None
    folder = Path(record.admin).parent
    assert folder.is_dir()
    os.kill(triton.pid, signal.SIGKILL)
    wait_until(lambda: not group_members(group), "Triton's processes did not end")
    assert runtime.find_server(triton.url) is None
    other = TritonServer(tmp_path / "other", log=tmp_path / "other.log").start()
    other.stop()
    assert shared_memory_of(triton.pid) == []
    assert not folder.exists()


def test_a_taken_port_is_told_in_one_sentence(triton_wheel: Path, tmp_path: Path) -> None:
    """Before Triton is started at all."""
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = _serve("--model-repository", str(tmp_path / "repository"), "--grpc-port", port)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"error: --grpc-port {port} can't be used")
    assert f"by process {os.getpid()}, " in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_port_that_another_serve_has_is_told_with_its_repository(
    triton: TritonServer, tmp_path: Path
) -> None:
    """The process that listens is tritonserver; what a person knows is `serve`."""
    port = triton.url.rpartition(":")[2]
    ended = _serve("--model-repository", str(tmp_path / "other"), "--grpc-port", port)
    assert ended.returncode == 1
    assert f"by the `serve` on {triton.repository}, process {triton.pid}" in ended.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "example.org", "::"])  # noqa: S104 - refused
def test_any_address_but_loopback_is_refused_with_the_way_out(host: str, tmp_path: Path) -> None:
    """This Triton is too old for a network; NVIDIA's container is named."""
    ended = _serve("--host", host, "--model-repository", str(tmp_path / "repository"))
    assert ended.returncode == 1
    assert "loopback" in ended.stderr
    assert "nvcr.io/nvidia/tritonserver, 26.07 or newer" in ended.stderr
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize("flag", ["--grpc-addr=0.0.0.0", "--allow-http=true", "--metrics_address=0.0.0.0"])
def test_flags_that_would_open_the_server_are_refused(flag: str, tmp_path: Path) -> None:
    """What follows `--` can't undo what keeps it safe, abbreviated or not."""
    ended = _serve("--model-repository", str(tmp_path), "--", flag)
    assert ended.returncode == 2
    assert flag.partition("=")[0] in ended.stderr


def test_only_loopback_is_listened_on(triton: TritonServer) -> None:
    """A socket bound to every address would answer at another one too; neither gRPC nor metrics does."""
    for url in (triton.url, triton.events()[1]["metrics"]):
        port = int(url.rpartition(":")[2])
        socket.create_connection((LOOPBACK, port), timeout=LIMIT_S).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=LIMIT_S)


def test_a_word_that_is_no_option_starts_nothing(tmp_path: Path) -> None:
    """A mistyped `serve status` is no server; only what follows `--` is Triton's."""
    ended = _serve("--model-repository", str(tmp_path / "repository"), "stauts")
    assert ended.returncode == 2
    assert "stauts" in ended.stderr
    assert not (tmp_path / "repository").exists()


def test_it_needs_no_environment_no_room_for_its_output_and_no_init(
    triton_wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As cron, a full disk and a container give it, where it must take in the processes that nobody else does."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    publish_model(tmp_path / "repository")
    port, metrics_port = choose_ports({"grpc": 0, "metrics": 0}).values()
    url = f"{LOOPBACK}:{port}"
    as_init = (
        "import ctypes, os, sys; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])"
    )
    options = ["--grpc-port", str(port), "--metrics-port", str(metrics_port), "--log-file", "/dev/null"]
    options += ["--grace", "0", "--model-repository", str(tmp_path / "repository")]
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(
            [sys.executable, "-c", as_init, sys.executable, "-m", "unitrain", "serve", *options],
            env={"XDG_RUNTIME_DIR": str(tmp_path)} | {k: v for k, v in os.environ.items() if k == "PYTHONPATH"},
            stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    try:
        assert answers(url)
        record = runtime.find_server(url)
        assert record is not None
        (tmp_path / "unitrain").chmod(0o755)  # its record can't be written any more
        os.kill(record.triton_pid, signal.SIGKILL)
        assert answers(url)
        assert _zombies_of(process.pid) == []
    finally:
        process.terminate()
        _, told = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, told) == (0, "")


def _zombies_of(parent: int) -> list[str]:
    listed = subprocess.run(
        ["ps", "--ppid", str(parent), "-o", "stat="], capture_output=True, text=True, check=False
    )
    return [state for state in listed.stdout.split() if state.startswith("Z")]


def test_a_path_that_a_shell_would_split_and_ascii_cannot_write_is_served(
    triton_wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton gives paths to a shell, unquoted: it gets a link, which nobody sees and which goes with it."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    proof = tmp_path / "ran"
    repository = tmp_path / f"it's a größe; $(touch {proof.name})"
    server = TritonServer(repository, log=tmp_path / "log", options=("--grace", "0")).start()
    try:
        publish_model(repository)
        server.wait_for("linear", 1)
        assert ask(server.url, np.ones((1, 3)))[1] == 1
        publish_broken(repository)
        assert f"{repository}/linear/2/model.onnx" in server.wait_for_event("failed")["reason"]
        assert [path for path in runtime.runtime_dir().iterdir() if f"_{server.pid}_" in path.name]
    finally:
        server.stop()
    assert not [path for path in runtime.runtime_dir().iterdir() if f"_{server.pid}_" in path.name]
    assert not proof.exists()


@pytest.mark.parametrize("usage", slow_after(1, ["serverAuth,clientAuth", "serverAuth"]))
def test_tls_is_spoken_where_the_flags_say_so(usage: str, triton_wheel: Path, tmp_path: Path) -> None:
    """The supervisor finds its way in too, by the certificate's own name; with clientAuth, both show one."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate,
         "-days", "1", "-subj", "/CN=triton.example", "-addext", "subjectAltName=DNS:triton.example",
         "-addext", f"extendedKeyUsage={usage}"],
        check=True, capture_output=True,
    )  # fmt: skip
    mutual = "clientAuth" in usage
    flags = [f"--grpc-server-cert={certificate}", f"--grpc-server-key={key}", "--grpc-use-ssl=true"]
    flags += [f"--grpc-root-cert={certificate}", "--grpc-use-ssl-mutual=true"] if mutual else []
    options = ("--grace", "0", "--", *flags)
    server = TritonServer(tmp_path / "repository", log=tmp_path / "log", options=options).start()
    try:
        publish_model(server.repository)
        server.wait_for("linear", 1)
        shown = {"private_key": str(key), "certificate_chain": str(certificate)} if mutual else {}
        with triton_grpc.InferenceServerClient(
            server.url, ssl=True, root_certificates=str(certificate), **shown,
            channel_args=[("grpc.ssl_target_name_override", "triton.example")],
        ) as client:  # fmt: skip
            assert client.is_model_ready("linear")
        assert not answers(server.url, within_s=1), "in plain text it does not answer"
        assert server_status(server.url).ready
    finally:
        server.stop()


def test_a_flag_that_triton_does_not_know_is_told_and_leaves_nothing(
    triton_wheel: Path, tmp_path: Path
) -> None:
    """Triton's own words, its log named, exit 1."""
    log = tmp_path / "triton.log"
    ports = ("--grpc-port", "0", "--metrics-port", "0", "--log-file", str(log))
    ended = _serve(*ports, "--model-repository", str(tmp_path / "repository"), "--", "--no-such-flag")
    assert ended.returncode == 1
    assert "no-such-flag" in ended.stderr
    assert str(log) in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_the_same_repository_is_served_by_plain_polling(triton_wheel: Path, tmp_path: Path) -> None:
    """No watcher is needed: Triton itself finds and swaps the versions."""
    repository = tmp_path / "repository"
    publish_model(repository, scale=2)
    url, stop = _plain_triton(repository, tmp_path / "log")
    try:
        assert answers(url)
        with Load(url) as load:
            publish_model(repository, scale=3)
            wait_until(lambda: 2 in load.answered, "version 2 did not answer")
        assert load.errors == []
        assert set(load.answered) == {1, 2}
    finally:
        stop()


def _plain_triton(repository: Path, log: Path) -> tuple[str, object]:
    distribution = find_triton()
    port = choose_ports({"--grpc-port": 0})["--grpc-port"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [
                distribution.program,
                f"--model-repository={repository}",
                "--model-control-mode=poll",
                "--repository-poll-secs=1",
                f"--backend-directory={distribution.backends_dir}",
                f"--grpc-address={LOOPBACK}",
                f"--grpc-port={port}",
                "--allow-http=false",
                "--allow-metrics=false",
            ],
            env=distribution.environment,
            stdout=file,
            stderr=file,
        )

    def stop() -> None:
        process.terminate()
        process.wait(LIMIT_S)

    return f"{LOOPBACK}:{port}", stop
