"""Tensors by shared memory, against a real Triton."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx_models
import pytest

from unitrain.client import Client
from unitrain.client.metadata import ModelInfo
from unitrain.client.streaming import shared_memory
from unitrain.client.streaming.shared_memory import SharedMemory
from unitrain.errors import UsageError
from unitrain.serving.admin_client import Admin
from unitrain.serving.server_registry import find_server
from unitrain.signature import Signature, TensorSpec

SHM = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lies


def numbered(count):
    for i in range(count):
        yield {"x": np.full(3, i, np.float32)}


def right(results):
    """How many there were, each being the answer to its sample."""
    count = 0
    for place, result in enumerate(results):
        assert result.index == place
        assert result.error is None
        assert np.array_equal(result.outputs["y"], np.full(3, 2 * place, np.float32))
        count += 1
    return count


def left_behind(url):
    """What the server still maps of clients, and the files that clients left."""
    admin = Admin(url, socket_path=Path(find_server(url).admin))
    return admin.regions(), [*SHM.glob(f"unitrain-client-{os.getpid()}-*")]


def test_answers_are_those_of_messages_and_nothing_is_left(server):
    """Single rows, rows with a batch axis, several inputs and outputs, and rows that fail."""
    with Client(server.url) as client:
        assert right(client.stream("linear", numbered(2000), shared_memory=True)) == 2000
        samples = [{"a": np.full((2, 2), i, np.float32), "n": np.array([i])} for i in range(100)]
        for i, result in enumerate(client.stream("two", samples, shared_memory=True, batch_rows=7)):
            assert (result.outputs["sum"] == 2 * i).all()
            assert result.outputs["count"].tolist() == [i]
        mixed = [{"i": np.array([[1], [2]])}, {"i": [99]}, {"i": [3]}]
        good, bad, last = client.stream("picky", mixed, shared_memory=True)
        row = {"x": np.ones(3, np.float32)}
        nan = list(
            client.stream("linear", [row, {"x": np.full(3, np.nan, np.float32)}, row], shared_memory=True)
        )
    assert good.outputs["y"].tolist() == [[10], [20]]
    assert "sample 1" in str(bad.error)
    assert last.outputs["y"].tolist() == [30]
    assert [r.error is None for r in nan] == [True, False, True]
    assert left_behind(server.url) == ([], [])


def test_the_file_that_others_may_list_tells_nothing(server, monkeypatch):
    """It is for this user alone, and has another name than the region, which any client's request could read from."""
    files, original = [], shared_memory._map_file

    def mapped(path, size):
        found = original(path, size)
        files.append((path.name, path.stat().st_mode & 0o777))
        return found

    monkeypatch.setattr(shared_memory, "_map_file", mapped)
    regions = set()
    with Client(server.url) as client:
        for _ in client.stream("linear", numbered(40), shared_memory=True, batch_rows=8):
            regions |= set(Admin(server.url, socket_path=Path(find_server(server.url).admin)).regions())
    assert [mode for _, mode in files] == [0o600]
    assert regions
    assert not regions & {name for name, _ in files}
    assert not [region for region in regions for name, _ in files if name in region or region in name]


def test_killed_server_and_stopped_client_leave_nothing(triton):
    """A new server gets the memory anew, with what was unanswered; a stop gives it back."""
    onnx_models.publish_model(triton.repository)
    triton.wait_for("linear", 1)
    stop, count = threading.Event(), 0
    with Client(triton.url) as client:
        for result in client.stream("linear", numbered(10**9), batch_rows=8, shared_memory=True, stop=stop):
            assert result.error is None
            assert np.array_equal(result.outputs["y"], np.full(3, 2 * result.index, np.float32))
            count += 1
            if count == 3000:
                os.kill(triton.triton_pid, signal.SIGKILL)
            if count == 9000:
                stop.set()
    assert left_behind(triton.url) == ([], [])


def test_killed_client_leaves_no_file_and_the_next_one_clears_the_server(triton):
    """A `kill -9` of a client in mid-stream: no file at all, and the server's mapping until the next client."""
    onnx_models.publish_model(triton.repository)
    triton.wait_for("linear", 1)
    words = f"predict linear --url {triton.url} --input random --count -1 --shm --output -"
    with subprocess.Popen(
        [sys.executable, "-m", "unitrain", *words.split()], stdout=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        process.kill()
        pid = process.pid
    assert not [*SHM.glob(f"unitrain-client-{pid}-*")]
    assert len(left_behind(triton.url)[0]) == 1
    with Client(triton.url) as client:
        assert right(client.stream("linear", numbered(10), shared_memory=True)) == 10
    assert left_behind(triton.url) == ([], [])


def model(dims=(3,), url="127.0.0.1:1"):
    spec = TensorSpec("x", "FP32", dims)
    return ModelInfo("m", (1,), None, Signature((spec,), (spec,), batched=True), 8, url)


@pytest.mark.parametrize(
    ("of", "said"),
    [
        (model(url="10.0.0.1:8001"), "--shm: the server must be on this host, got 10.0.0.1:8001"),
        (model(dims=(-1,)), "inputs of open shapes or strings"),
    ],
)
def test_what_can_not_share_memory_is_refused(of, said):
    """Another host, and shapes that only the samples know."""
    with pytest.raises(UsageError, match=said):
        SharedMemory(of, 8, 4)
