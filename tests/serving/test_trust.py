"""A foreign file in the repository can't run code, nor leave the root."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
from asking import ask
from onnx_models import linear_model, publish_model
from triton_server import TritonServer

from unitrain.repository import Repository

RUNS_CODE = """
import ctypes, os, numpy as np, triton_python_backend_utils as pb_utils
from pathlib import Path
Path({proof!r}).touch()
class TritonPythonModel:
    def execute(self, requests):
        if {dies}: os.kill(os.getpid(), 9)
        answers = []
        for request in requests:
            x = np.from_dlpack(pb_utils.get_input_tensor_by_name(request, "x"))
            capsule = (2 * x).__dlpack__()
            ctypes.pythonapi.PyCapsule_SetDestructor(ctypes.py_object(capsule), None)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("y", capsule)]))
        return answers
"""


def _edit(config: Path, old: str, new: str) -> None:
    config.write_text(config.read_text().replace(old, new))


def _python_model(root: Path, name: str, proof: Path, *, dies: bool = False) -> int:
    """A version of a model that runs code, as somebody who may write into the repository would put it there."""

    def fill(path: Path) -> None:
        linear_model(path)
        (path.parent / "model.py").write_text(RUNS_CODE.format(proof=str(proof), dies=dies))

    if (root / name).is_dir():
        _edit(root / name / "config.pbtxt", 'backend: "python"', 'backend: "onnxruntime"')
    version = publish_model(root, name, fill=fill)
    _edit(root / name / "config.pbtxt", 'backend: "onnxruntime"', 'backend: "python"')
    return version


def test_a_backend_that_is_allowed_by_name_is_served(triton_wheel: Path, tmp_path: Path) -> None:
    """It then runs what lies in the repository; one that dies at each request is set aside for the last good."""
    options = ("--grace", "0", "--allow-backend", "python")
    server = TritonServer(tmp_path / "repository", log=tmp_path / "log", options=options).start()
    try:
        _python_model(tmp_path, "code", tmp_path / "ran")
        (tmp_path / "code" / "1" / "model.onnx").unlink()  # its backend needs model.py alone
        (tmp_path / "code").rename(server.repository / "code")
        server.wait_for("code", 1)
        assert (tmp_path / "ran").exists()
        assert ask(server.url, np.ones((1, 3)), model="code")[0][0, 0] == 2
        version = _python_model(server.repository, "code", tmp_path / "ran", dies=True)
        failed = server.wait_for_event("failed", timeout_s=40)
        assert (failed["version"], "set aside" in failed["reason"]) == (version, True)
        server.wait_for_event(
            "loaded", accept=lambda e: e["versions"] == [1], after=server.events().index(failed)
        )
        assert ask(server.url, np.ones((1, 3)), model="code")[1] == 1
        assert not [event for event in server.events() if event["event"] == "restarting"]
        _python_model(tmp_path, "alone", tmp_path / "ran", dies=True)
        (tmp_path / "alone").rename(server.repository / "alone")
        restarted = server.wait_for_event("restarting", timeout_s=60)
        assert "alone does not answer" in restarted["reason"], "there is no other version to take its place"
        server.wait_for_event(
            "failed", accept=lambda e: e["model"] == "alone", after=server.events().index(restarted)
        )
        server.wait_for_event(
            "loaded", accept=lambda e: e["model"] == "code", after=server.events().index(restarted)
        )
        assert ask(server.url, np.ones((1, 3)), model="code")[1] == 1
    finally:
        server.stop()


REACHES_OUT = {
    "environment": 'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "/tmp/env.tar.gz" } }',
    "other_folder": 'default_model_filename: "../../../model.onnx"',
    "shell": 'default_model_filename: "$(touch ran).onnx"',
    "operators": 'model_operations { op_library_filename: "/tmp/operators.so" }',
    "platform": 'platform: "tensorrt_plan"',
    "agent": 'model_repository_agents { agents { name: "../evil" } }',
    "runtime": 'runtime: "evil.so"',
    "ensemble": 'ensemble_scheduling { step { model_name: "code" model_version: -1 } }',
    "accelerator": "optimization { execution_accelerators { gpu_execution_accelerator { name: 'tensorrt' "
    "parameters { key: 'trt_extra_plugin_lib_paths' value: '/tmp/evil.so' } } } }",
}
"""What is added to the config.pbtxt of a model of that name."""


def test_what_could_run_code_end_triton_or_reach_out_is_refused(triton: TritonServer, tmp_path: Path) -> None:
    """Triton itself would follow each; the reason names it, nothing of it runs, and the others are served."""
    for name, extra in REACHES_OUT.items():
        publish_model(tmp_path, name)
        config = tmp_path / name / "config.pbtxt"
        text = re.sub(r"dynamic_batching \{[^}]*\}", "", config.read_text())  # no ensemble has it
        config.write_text(f"{text}\n{extra}\n")
    expected = dict.fromkeys(REACHES_OUT, "config.pbtxt has")
    publish_model(tmp_path, "labels")
    _edit(
        tmp_path / "labels" / "config.pbtxt", 'name: "y"', 'name: "y"\n label_filename: "../../../etc/passwd"'
    )
    _python_model(tmp_path, "code", tmp_path / "ran")
    for name, folder in (("version_library", "1"), ("model_library", ".")):
        publish_model(tmp_path, name)
        (tmp_path / name / folder / "libtriton_onnxruntime.so").write_bytes(b"constructors would run")
    publish_model(tmp_path, "huge")
    (tmp_path / "huge" / "99999999999999999999").mkdir()
    expected |= {
        "labels": "label_filename",
        "code": "--allow-backend python",
        "version_library": "libtriton_onnxruntime.so is a library of code",
        "model_library": "libtriton_onnxruntime.so is a library of code",
        "huge": "larger than Triton can count to",
    }
    publish_model(triton.repository)
    for name in expected:
        (tmp_path / name).rename(triton.repository / name)
    for name, words in expected.items():
        failed = triton.wait_for_event("failed", accept=lambda event, name=name: event["model"] == name)
        assert words in failed["reason"]
    triton.wait_for("linear", 1)
    assert not (tmp_path / "ran").exists()
    assert {event["event"] for event in triton.events()} == {"triton", "ready", "loaded", "failed"}
    assert [event["model"] for event in triton.events() if event["event"] == "loaded"] == ["linear"]


def test_links_out_of_the_repository_are_not_followed(triton: TritonServer, tmp_path: Path) -> None:
    """A model's folder, a version's, a graph: each link that leaves the root is refused, and what is served stays."""
    publish_model(triton.repository, scale=2)
    triton.wait_for("linear", 1)
    outside = linear_model(tmp_path / "outside.onnx", 9)
    version = publish_model(triton.repository, fill=lambda path: path.symlink_to(outside) and None)
    failed = triton.wait_for_event("failed")
    assert failed["version"] == version
    assert "leads out of the repository" in failed["reason"]
    publish_model(tmp_path / "other", "whole")
    os.symlink(tmp_path / "other" / "whole", triton.repository / "whole")  # noqa: PTH211 - as a person does it
    publish_model(triton.repository, scale=3)
    triton.wait_for("linear", 3)
    assert triton.wait_for_event("loaded", accept=lambda e: 3 in e["versions"])["versions"] == [1, 3]
    assert not [event for event in triton.events() if event.get("model") == "whole"]


def test_a_link_inside_of_the_repository_is_followed(triton: TritonServer, tmp_path: Path) -> None:
    """Versions may share a file."""
    publish_model(triton.repository, scale=2)
    graph = Repository(triton.repository).version_dir("linear", 1) / "model.onnx"
    publish_model(triton.repository, fill=lambda path: path.symlink_to(graph) and None)
    triton.wait_for("linear", 2)
    assert ask(triton.url, np.ones((1, 3)), version="2")[0][0, 0] == 2


def test_only_names_that_are_plain_are_looked_at(triton: TritonServer, tmp_path: Path) -> None:
    """A folder of any other name is nobody's model."""
    publish_model(tmp_path, "linear")
    text = (tmp_path / "linear" / "config.pbtxt").read_text()
    for name in (".hidden", "a b", "-rf", "x/../y", "$(touch ran)"):
        folder = triton.repository / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.pbtxt").write_text(text)
        shutil.copytree(tmp_path / "linear" / "1", folder / "1")
    publish_model(triton.repository, "seen")
    triton.wait_for("seen", 1)
    assert {event.get("model") for event in triton.events()} <= {"seen", "x", "y", None}
