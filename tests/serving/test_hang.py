"""What hangs is restarted within half a minute; what is busy is left alone."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tritonclient.grpc as triton_grpc
from asking import answers, ask, group_members, stubs
from onnx import TensorProto, helper
from onnx_models import publish_model, save_graph
from triton_server import TritonServer
from tritonclient.utils import InferenceServerException

from unitrain.serving.hang_detection import Progress, hung_processes
from unitrain.serving.triton.system_processes import cpu_s, start_of
from unitrain.signature import Signature, TensorSpec

WITHIN_S = 30.0
LONG_S = 24.0
"""Longer than two probes may wait for an answer."""


def test_a_stopped_triton_is_restarted(triton: TritonServer) -> None:
    """It accepts connections and answers nothing; nothing of it is left, and the models are served again."""
    publish_model(triton.repository)
    triton.wait_for("linear", 1)
    group, seen, began = triton.triton_pid, len(triton.events()), time.monotonic()
    os.kill(group, signal.SIGSTOP)
    restarting = triton.wait_for_event("restarting", 2 * WITHIN_S, after=seen)
    assert "has not answered" in restarting["reason"]
    assert time.monotonic() - began < WITHIN_S
    triton.wait_for_event("loaded", WITHIN_S, after=seen)
    assert group_members(group) == []
    assert answers(triton.url, within_s=10)


def test_a_stopped_process_of_a_model_is_ended_and_the_model_reloaded(triton: TritonServer) -> None:
    """The other models, and Triton itself, stay."""
    publish_model(triton.repository)
    publish_model(triton.repository, "other")
    triton.wait_for("linear", 1)
    triton.wait_for("other", 1)
    stub = next(
        pid for pid in stubs(triton.triton_pid) if b"/linear/" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    seen, began, group = len(triton.events()), time.monotonic(), triton.triton_pid
    os.kill(stub, signal.SIGSTOP)
    unhealthy = triton.wait_for_event("unhealthy", 2 * WITHIN_S, after=seen)
    assert unhealthy["model"] == "linear"
    triton.wait_for_event("loaded", WITHIN_S, after=seen)
    assert answers(triton.url, within_s=10)
    assert time.monotonic() - began < WITHIN_S
    assert triton.triton_pid == group
    while start_of(stub) is not None:
        assert time.monotonic() - began < WITHIN_S
        time.sleep(0.1)
    assert len(stubs(group)) == 2
    assert ask(triton.url, np.ones((1, 3)), model="other")[1] == 1
    assert {event["model"] for event in triton.events()[seen:]} == {"linear"}


def test_a_process_that_is_stopped_while_it_computes_is_ended(triton: TritonServer) -> None:
    """Triton waits for it; a probe that waits, too, shows it."""
    publish_model(triton.repository, "spin", signature=_SIGNATURE, fill=_spin_model)
    triton.wait_for("spin", 1)
    (stub,) = stubs(triton.triton_pid)
    loops = _loops_of(triton.repository / "spin" / "1" / "model.onnx", LONG_S)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(_ask_integer, triton.url, "spin", loops)
        before_s = cpu_s(stub)
        while cpu_s(stub) < before_s + 0.3:
            time.sleep(0.05)
        seen, began = len(triton.events()), time.monotonic()
        os.kill(stub, signal.SIGSTOP)
        triton.wait_for_event("unhealthy", 2 * WITHIN_S, after=seen)
        triton.wait_for_event("loaded", WITHIN_S, after=seen)
        assert time.monotonic() - began < WITHIN_S
        with pytest.raises(InferenceServerException):
            asked.result(WITHIN_S)
    assert _ask_integer(triton.url, "spin", 1) == 1
    assert start_of(stub) is None


@pytest.fixture
def processes() -> Iterator[dict[str, int]]:
    """One process that computes, one that waits and one that is stopped, by these words."""
    code = {
        "busy": "while True: pass",
        "waiting": "import time; time.sleep(600)",
        "stopped": "while True: pass",
    }
    started = {name: subprocess.Popen([sys.executable, "-c", words]) for name, words in code.items()}
    started["stopped"].send_signal(signal.SIGSTOP)
    try:
        yield {name: process.pid for name, process in started.items()}
    finally:
        for process in started.values():
            process.kill()
            process.wait()


def test_what_computes_is_busy_and_what_is_stopped_hangs(processes: dict[str, int]) -> None:
    """One that waits hangs only where its model can't have anything to wait for."""
    time.sleep(1)  # what their start takes is over
    progress = {name: Progress() for name in processes}
    for name, pid in processes.items():
        progress[name].begin([pid])
    time.sleep(2)
    assert [name for name in processes if progress[name].is_idle()] == ["waiting", "stopped"]
    hung = {name: hung_processes([pid], progress[name]) == [pid] for name, pid in processes.items()}
    assert hung == {"busy": False, "waiting": True, "stopped": True}
    hung = {name: hung_processes([pid], None) == [pid] for name, pid in processes.items()}
    assert hung == {"busy": False, "waiting": False, "stopped": True}


def _spin_model(path: Path) -> None:
    """An ONNX file that multiplies matrices as often as the largest of its inputs `x` [batch, 1] says."""
    square = onnx.numpy_helper.from_array(np.eye(128, dtype=np.float32), "square")
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["more"], ["again"]),
            helper.make_node("MatMul", ["before", "square"], ["after"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("more", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, [128, 128]),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, [128, 128]),
        ],
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["times"], keepdims=0),
        helper.make_node("Loop", ["times", "", "square"], ["last"], body=body),
        helper.make_node("ReduceMax", ["last"], ["one"], keepdims=0),
        helper.make_node("Cast", ["one"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Mul", ["x", "whole"], ["y"]),
    ]
    dims = ["batch", 1]
    save_graph(path, nodes, {"x": (TensorProto.INT64, dims)}, {"y": (TensorProto.INT64, dims)}, [square])


def _loops_of(path: Path, seconds: float) -> int:
    session = onnxruntime.InferenceSession(str(path))
    began = time.monotonic()
    session.run(None, {"x": np.array([[2000]])})
    return int(2000 * seconds / (time.monotonic() - began))


def _wait_model(root: Path) -> None:
    """A model of the Python backend that waits for as many seconds as its input says, without computing."""

    def fill(path: Path) -> None:
        _spin_model(path)
        (path.parent / "model.py").write_text(
            "import time, numpy as np, triton_python_backend_utils as pb_utils\n"
            "class TritonPythonModel:\n"
            "    def execute(self, requests):\n"
            "        answers = []\n"
            "        for request in requests:\n"
            "            x = pb_utils.get_input_tensor_by_name(request, 'x')\n"
            "            time.sleep(int(np.from_dlpack(x).max()))\n"
            "            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack('y', x.to_dlpack())]))\n"
            "        return answers\n"
        )

    publish_model(root, "wait", signature=_SIGNATURE, fill=fill)
    config = root / "wait" / "config.pbtxt"
    config.write_text(config.read_text().replace('backend: "onnxruntime"', 'backend: "python"'))


_SIGNATURE = Signature((TensorSpec("x", "INT64", (1,)),), (TensorSpec("y", "INT64", (1,)),), batched=True)


def _ask_integer(url: str, model: str, value: int) -> int:
    with triton_grpc.InferenceServerClient(url) as client:
        tensor = triton_grpc.InferInput("x", [1, 1], "INT64")
        tensor.set_data_from_numpy(np.array([[value]]))
        return int(client.infer(model, [tensor]).as_numpy("y")[0, 0])


@pytest.mark.slow
def test_a_model_that_computes_or_waits_for_long_is_left_alone(triton_wheel: Path, tmp_path: Path) -> None:
    """One instance, one request of 24 s: probes time out, and the answer comes all the same."""
    options = ("--grace", "0", "--allow-backend", "python")
    server = TritonServer(tmp_path / "repository", log=tmp_path / "log", options=options).start()
    try:
        publish_model(server.repository, "spin", signature=_SIGNATURE, fill=_spin_model)
        _wait_model(tmp_path / "made")
        (tmp_path / "made" / "wait").rename(server.repository / "wait")
        server.wait_for("spin", 1)
        server.wait_for("wait", 1)
        loops = _loops_of(server.repository / "spin" / "1" / "model.onnx", LONG_S)
        seen, began = len(server.events()), time.monotonic()
        values = {"spin": loops, "wait": int(LONG_S)}
        with ThreadPoolExecutor() as pool:
            asked = {
                model: pool.submit(_ask_integer, server.url, model, value) for model, value in values.items()
            }
            for model, answer in asked.items():
                assert answer.result(240) == values[model]
        assert time.monotonic() - began > LONG_S / 2
        time.sleep(12)  # a probe that waits is over
        assert [event for event in server.events()[seen:] if event["event"] != "loaded"] == []
    finally:
        server.stop(timeout_s=0)
