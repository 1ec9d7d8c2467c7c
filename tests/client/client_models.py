"""Models that the client's tests ask, beside the linear ones."""

from pathlib import Path

import onnx_models
from onnx import TensorProto, helper

from unitrain.signature import Signature, TensorSpec


def publish_two(root: Path, name: str = "two") -> int:
    """A model of two inputs (FP32[2, 2], INT64[1]) and two outputs: `sum` = a + n, `count` = n."""
    signature = Signature(
        (TensorSpec("a", "FP32", (2, 2)), TensorSpec("n", "INT64", (1,))),
        (TensorSpec("sum", "FP32", (2, 2)), TensorSpec("count", "INT64", (1,))),
        batched=True,
    )

    def fill(path: Path) -> None:
        onnx_models.save_graph(
            path,
            [
                helper.make_node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
                helper.make_node("Unsqueeze", ["f", "axis"], ["g"]),
                helper.make_node("Add", ["a", "g"], ["sum"]),
                helper.make_node("Identity", ["n"], ["count"]),
            ],
            {"a": (TensorProto.FLOAT, ["batch", 2, 2]), "n": (TensorProto.INT64, ["batch", 1])},
            {"sum": (TensorProto.FLOAT, ["batch", 2, 2]), "count": (TensorProto.INT64, ["batch", 1])},
            [helper.make_tensor("axis", TensorProto.INT64, [1], [2])],
        )

    return onnx_models.publish_model(root, name, signature=signature, fill=fill)


def publish_picky(root: Path, name: str = "picky") -> int:
    """A model that picks `table[i]` of ten rows: an index beyond them fails on the server, for all of its run."""
    signature = Signature((TensorSpec("i", "INT64", (1,)),), (TensorSpec("y", "FP32", (1,)),), batched=True)

    def fill(path: Path) -> None:
        onnx_models.save_graph(
            path,
            [helper.make_node("Gather", ["table", "i"], ["y"])],
            {"i": (TensorProto.INT64, ["batch", 1])},
            {"y": (TensorProto.FLOAT, ["batch", 1])},
            [helper.make_tensor("table", TensorProto.FLOAT, [10], [float(10 * i) for i in range(10)])],
        )

    return onnx_models.publish_model(root, name, signature=signature, fill=fill)


def publish_whole(root: Path, name: str = "whole") -> int:
    """A model without a batch axis: y = 2 * x for x of FP32[?, 3]."""
    signature = Signature(
        (TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 3)),), batched=False
    )

    def fill(path: Path) -> None:
        onnx_models.save_graph(
            path,
            [helper.make_node("Mul", ["x", "s"], ["y"])],
            {"x": (TensorProto.FLOAT, ["rows", 3])},
            {"y": (TensorProto.FLOAT, ["rows", 3])},
            [helper.make_tensor("s", TensorProto.FLOAT, [], [2.0])],
        )

    return onnx_models.publish_model(root, name, signature=signature, fill=fill)
