"""The wheel's backend opens the very bytes that it checked, whatever becomes of the files meanwhile."""

import importlib
import json
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_models import linear_signature, prove, save_graph

from unitrain.repository import integrity, tolerance
from unitrain.serving.triton import wheel as backends_folder

X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The backend's module, in this process."""
    utils = types.ModuleType("triton_python_backend_utils")
    utils.TritonModelException = RuntimeError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    monkeypatch.setitem(sys.modules, "integrity", integrity)
    monkeypatch.setitem(sys.modules, "tolerance", tolerance)
    monkeypatch.syspath_prepend(
        str(Path(backends_folder.__file__).parent.parent / "backends" / "onnxruntime")
    )
    yield importlib.import_module("model")
    for name in ("model", "numpy2_strings"):
        sys.modules.pop(name, None)


def _version(root: Path, scale: float, *, beside: bool) -> Path:
    """A version of scale * x, its weight in the graph or beside it."""
    folder = root / "1"
    folder.mkdir(parents=True)
    path, kind = folder / "model.onnx", (TensorProto.FLOAT, ["batch", 3])
    weights = onnx.numpy_helper.from_array(np.full(3, scale, np.float32), "scale")
    save_graph(path, [helper.make_node("Mul", ["x", "scale"], ["y"])], {"x": kind}, {"y": kind}, [weights])
    if beside:
        onnx.save(onnx.load(path), path, save_as_external_data=True, location="data", size_threshold=0)
    prove(folder, "linear", 1, linear_signature(), {"x": X})
    return folder


def _initialize(backend: Any, root: Path, **fields: str) -> Any:
    config = fields | {
        "max_batch_size": 8,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [3]}],
    }
    model = backend.TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps(config),
            "model_repository": str(root),
            "model_version": "1",
            "model_instance_kind": "CPU",
        }
    )
    return model


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("in_memory_bytes", [1 << 30, 0])
def test_files_that_change_between_the_check_and_the_opening_are_never_opened(
    backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, beside: bool, in_memory_bytes: int
) -> None:
    """Small ones are opened from memory; of large ones, opened by their path, the change is noticed."""
    in_memory = in_memory_bytes > 0
    folder = _version(tmp_path, 2, beside=beside)
    other = _version(tmp_path / "other", 2.00001, beside=beside)  # within the tolerances: only the bytes tell
    monkeypatch.setattr(backend, "_IN_MEMORY_BYTES", in_memory_bytes)
    model = _initialize(backend, tmp_path)
    np.testing.assert_array_equal(model._session.run(["y"], {"x": X})[0], 2 * X)
    opened = backend.ort.InferenceSession

    def exchanged(*arguments: Any, **options: Any) -> Any:
        for name in ("model.onnx", *(["data"] if beside else [])):
            (other / name).replace(folder / name)
        return opened(*arguments, **options)

    monkeypatch.setattr(backend.ort, "InferenceSession", exchanged)
    if in_memory:
        model = _initialize(backend, tmp_path)
        np.testing.assert_array_equal(model._session.run(["y"], {"x": X})[0], 2 * X)
        return
    with pytest.raises(RuntimeError, match="was written to while it was loaded"):
        _initialize(backend, tmp_path)


def test_weights_in_memory_do_not_follow_the_file(backend: Any, tmp_path: Path) -> None:
    """What was loaded serves on as it was, though its file is written to in place."""
    folder = _version(tmp_path, 2, beside=True)
    model = _initialize(backend, tmp_path)
    with (folder / "data").open("r+b") as file:
        file.write(bytes(12))
    np.testing.assert_array_equal(model._session.run(["y"], {"x": X})[0], 2 * X)


def test_a_file_that_the_manifest_does_not_know_is_not_served(backend: Any, tmp_path: Path) -> None:
    """config.pbtxt can't lead round the hashes."""
    folder = _version(tmp_path, 2, beside=False)
    shutil.copyfile(folder / "model.onnx", folder / "other.onnx")
    with pytest.raises(RuntimeError, match="of which the manifest has no hash"):
        _initialize(backend, tmp_path, default_model_filename="other.onnx")
