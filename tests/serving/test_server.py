"""`unitrain.serving.Server` with a real Triton."""

import doctest
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from onnx_models import publish_broken, publish_model
from time_limits import LIMIT_S

from unitrain.client import Client
from unitrain.errors import ServingError, UsageError
from unitrain.serving import Server, server_registry
from unitrain.serving import background_server as server_module
from unitrain.serving.triton.process import LOOPBACK

QUICK = ("--grace", "0")


@pytest.fixture(autouse=True)
def _wheel(triton_wheel: Path) -> None:
    """Have Triton installed."""


def test_version_published_later_is_waited_for_and_answers(tmp_path: Path) -> None:
    """A block starts an empty server, gets each version as it is published, and leaves no server behind."""
    root = tmp_path / "repository"
    with Server(root, log_file=tmp_path / "log", options=QUICK) as server, Client(server.url) as client:
        for version, scale in ((1, 2.0), (2, 3.0)):
            publisher = threading.Timer(0.5, publish_model, (root,), {"scale": scale})
            publisher.start()
            assert server.wait_for("linear", version) == version
            publisher.join()
            answer = client.predict("linear", version=version, x=[1.0, 2.0, 3.0])
            assert answer.outputs["y"].tolist() == [scale, 2 * scale, 3 * scale]
        assert server.wait_for("linear") == 2
        names = [event["event"] for event in server.events()]
        assert names[:2] == ["triton", "ready"]
        assert names.count("loaded") == 2
        record = server_registry.find_server(server.url)
        assert record is not None
        assert record.pid == server.pid
    assert server_registry.find_server(server.url) is None
    assert server.stop() == 0
    assert server.stop() == 0


def test_wait_names_the_models_there_are_and_why_one_is_missing(tmp_path: Path) -> None:
    """A misspelt name, a version that is not there, and one that can't be loaded."""
    root = tmp_path / "repository"
    publish_model(root)
    with Server(root, log_file=tmp_path / "log", options=QUICK) as server:
        server.wait_for("linear", 1)
        with pytest.raises(ServingError, match=r"linaer was not loaded within 0.2 s; did you mean linear\?"):
            server.wait_for("linaer", timeout_s=0.2)
        with pytest.raises(ServingError, match=r"linear version 9 was not loaded .*; served are versions 1"):
            server.wait_for("linear", 9, timeout_s=0.2)
        number = publish_broken(root)
        server.wait_for_event("failed")
        with pytest.raises(
            ServingError, match=rf"linear version {number} was not loaded .*: .*INVALID_PROTOBUF"
        ):
            server.wait_for("linear", number, timeout_s=0.2)


def test_restart_of_triton_is_waited_for(tmp_path: Path) -> None:
    """A model counts as served only once the new Triton has loaded it."""
    publish_model(tmp_path / "repository")
    with Server(tmp_path / "repository", log_file=tmp_path / "log", options=QUICK) as server:
        server.wait_for("linear", 1)
        os.kill(server.events()[1]["triton_pid"], signal.SIGKILL)
        server.wait_for_event("restarting")
        server.wait_for("linear", 1)
        with Client(server.url) as client:
            assert client.predict("linear", x=[1.0, 1.0, 1.0]).version == 1


def test_server_that_cannot_start_gives_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence of `serve` is the error's; nothing keeps running, and stop() is harmless."""
    monkeypatch.chdir(tmp_path)
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        server = Server("unused", grpc_port=port)
        with pytest.raises(ServingError, match=f"server on unused: --grpc-port {port} can't be used"):
            server.start()
    assert server.stop() == 1
    with pytest.raises(UsageError, match="started before"):
        server.start()
    with pytest.raises(ServingError, match="has not been ready"):
        _ = server.url
    assert Server("never_started").stop() is None


def test_triton_that_refuses_a_flag_shows_the_end_of_its_log(tmp_path: Path) -> None:
    """The error has the reason and the last lines that Triton wrote."""
    server = Server(tmp_path / "repository", log_file=tmp_path / "log", options=("--", "--nonsense=1"))
    with pytest.raises(ServingError, match=r"unrecognized option .*nonsense") as error:
        server.start()
    assert f"end of {tmp_path / 'log'}:\n" in str(error.value)


def test_time_limit_of_the_start(tmp_path: Path) -> None:
    """A start that takes longer than allowed is given up, and ended."""
    server = Server(tmp_path / "repository", log_file=tmp_path / "log", timeout_s=0.05)
    with pytest.raises(ServingError, match=r"no event `ready` came within 0\.05 s"):
        server.start()
    assert server.stop() is not None


def test_exception_in_the_block_ends_the_server(tmp_path: Path) -> None:
    """The exception is the block's own, and the server has gone."""
    with (
        pytest.raises(ZeroDivisionError),
        Server(tmp_path / "repository", log_file=tmp_path / "log", options=QUICK) as server,
    ):
        _ = 1 / 0
    assert server_registry.find_server(server.url) is None
    with pytest.raises(ServingError, match=r"server on .*: it is not running"):
        server.wait_for("linear", timeout_s=5)


def test_server_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    """Even kill -9 of the program leaves no server, also if the start came from a thread that has ended."""
    code = (
        "import sys, threading, time; from unitrain.serving import Server;"
        "server = Server(sys.argv[1], log_file=sys.argv[2], options=('--grace', '0'));"
        "thread = threading.Thread(target=server.start); thread.start(); thread.join();"
        "time.sleep(1); server.wait_for_event('ready', 1); print(server.url, flush=True); time.sleep(600)"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "repository"), str(tmp_path / "log")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        url = program.stdout.readline().strip()
        record = server_registry.find_server(url)
        program.kill()
    assert record is not None
    deadline = time.monotonic() + LIMIT_S
    while record.is_alive() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not record.is_alive()
    assert server_registry.find_server(url) is None


def test_example_of_the_docstring_runs(tmp_path: Path) -> None:
    """As it stands, on a repository with the model that it names."""
    publish_model(tmp_path)
    names = {"repository": tmp_path, "Client": Client}
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder().find(
        server_module.Server, "Server", extraglobs=names, globs=vars(server_module)
    ):
        runner.run(test)
    assert runner.tries == 1
    assert runner.failures == 0
