"""What the client's benchmarks ask: a tiny MLP and a convolutional autoencoder, served by a real Triton."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from unitrain.repository import Repository, model_config
from unitrain.serving import Server
from unitrain.signature import Signature, TensorSpec

MAX_BATCH = 1024
DIMS: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "mlp": ((8,), (4,)),
    "autoencoder": ((240, 12), (240, 12)),
}
"""Shapes of a row of `x` and of `y`, both FP32."""


def save_mlp(path: Path) -> None:
    """Write an MLP of 8-64-64-4 with random weights."""
    sizes = (8, 64, 64, 4)
    graph = _Graph()
    last = "x"
    for layer in range(3):
        last = graph.add("MatMul", last, graph.weight(sizes[layer], sizes[layer + 1]))
        last = graph.add("Relu", last) if layer < 2 else last
    graph.save(path, last, DIMS["mlp"])


def save_autoencoder(path: Path) -> None:
    """Write a convolutional autoencoder of [240 steps, 12 channels]: 12-16-32-16-12, each of stride 2."""
    graph = _Graph()
    window = {"kernel_shape": [4], "strides": [2], "pads": [1, 1]}
    last = graph.add("Transpose", "x", perm=[0, 2, 1])
    for fan_in, fan_out in ((12, 16), (16, 32)):
        last = graph.add("Relu", graph.add("Conv", last, graph.weight(fan_out, fan_in, 4), **window))
    for fan_in, fan_out in ((32, 16), (16, 12)):
        last = graph.add("ConvTranspose", last, graph.weight(fan_in, fan_out, 4), **window)
        last = graph.add("Relu", last) if fan_out > 12 else last
    graph.save(path, graph.add("Transpose", last, perm=[0, 2, 1]), DIMS["autoencoder"])


class _Graph:
    """Nodes and weights as they are added."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._generator = np.random.default_rng(0)

    def weight(self, *shape: int) -> str:
        """The name of a random tensor, small enough that no activation grows."""
        values = self._generator.normal(size=shape) / np.sqrt(np.prod(shape[1:]) + shape[0])
        self._weights.append(
            onnx.numpy_helper.from_array(values.astype(np.float32), f"w{len(self._weights)}")
        )
        return f"w{len(self._weights) - 1}"

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """The name of a node's output."""
        name = f"n{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def save(self, path: Path, last: str, dims: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
        """Write it, with `x` in and `y` out."""
        x, y = (
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *row])
            for name, row in zip("xy", dims, strict=True)
        )
        nodes = [*self._nodes, helper.make_node("Identity", [last], ["y"])]
        graph = helper.make_graph(nodes, "graph", [x], [y], self._weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model)
        onnx.save(model, path)


def publish(root: Path, name: str) -> Path:
    """A new version of `mlp` or `autoencoder` in the repository; the path of its graph."""
    row_in, row_out = DIMS[name]
    signature = Signature(
        (TensorSpec("x", "FP32", row_in),), (TensorSpec("y", "FP32", row_out),), batched=True
    )
    config = model_config(
        name, signature, max_batch_size=MAX_BATCH, num_versions=2, max_queue_delay_microseconds=100
    )
    save = save_mlp if name == "mlp" else save_autoencoder
    version = Repository(root).publish(name, config, lambda folder, _number: save(folder / "model.onnx"))
    return root / name / str(version) / "model.onnx"


@contextmanager
def served(repository: Path, *models: str) -> Iterator[Server]:
    """Serve these models; the server is ended after the block."""
    with Server(repository, options=("--grace", "0")) as server:
        for name in models:
            server.wait_for(name)
        yield server
