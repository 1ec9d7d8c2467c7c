"""The ONNX Runtime backend of the wheel's Triton: what it takes, gives and says."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton_grpc
from onnx import TensorProto, helper
from onnx_models import linear_signature, publish_model, save_graph
from triton_server import TritonServer
from tritonclient.utils import InferenceServerException

from unitrain.signature import DTYPES, Signature, TensorSpec


def _infer(url: str, model: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """All outputs of one request."""
    with triton_grpc.InferenceServerClient(url) as client:
        tensors = []
        for name, array in inputs.items():
            kind = "BYTES" if array.dtype == object else triton_grpc._utils.np_to_triton_dtype(array.dtype)
            tensor = triton_grpc.InferInput(name, list(array.shape), kind)
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        result = client.infer(model, tensors, client_timeout=20)
        return {row.name: result.as_numpy(row.name) for row in result.get_response().outputs}


def _signature(
    inputs: dict[str, tuple[str, tuple[int, ...]]],
    outputs: dict[str, tuple[str, tuple[int, ...]]],
    *,
    batched: bool = True,
) -> Signature:
    def specs(of: dict[str, tuple[str, tuple[int, ...]]]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name, *kind) for name, kind in of.items())

    return Signature(specs(inputs), specs(outputs), batched=batched)


def test_every_type_comes_back_right(triton: TritonServer) -> None:
    """All that Triton, ONNX Runtime and numpy have; several at once, in one model."""
    kinds = [name for name in DTYPES if name != "BYTES"]
    ends = {
        side: {f"{side}_{name}": (getattr(TensorProto, DTYPES[name].onnx), ["batch", 2]) for name in kinds}
        for side in ("in", "out")
    }

    def fill(path: Path) -> None:
        nodes = [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name in kinds]
        save_graph(path, nodes, ends["in"], ends["out"])

    sides = [{f"{side}_{name}": (name, (2,)) for name in kinds} for side in ("in", "out")]
    publish_model(triton.repository, "types", signature=_signature(*sides), fill=fill)
    triton.wait_for("types", 1)
    rng = np.random.default_rng(0)
    rows = {f"in_{n}": rng.integers(0, 2, (3, 2)).astype(DTYPES[n].numpy) * 1 for n in kinds}
    rows = {f"in_{n}": rows[f"in_{n}"].astype(DTYPES[n].numpy) for n in kinds}
    rows["in_INT64"][0, 0], rows["in_UINT64"][0, 0] = -(2**62), 2**64 - 1
    answer = _infer(triton.url, "types", **rows)
    for name in kinds:
        assert answer[f"out_{name}"].dtype == rows[f"in_{name}"].dtype
        np.testing.assert_array_equal(answer[f"out_{name}"], rows[f"in_{name}"])


def _shouting(path: Path) -> None:
    """An ONNX file that puts `!` behind each string, and doubles a number."""
    nodes = [
        helper.make_node("StringConcat", ["text", "mark"], ["shout"]),
        helper.make_node("Add", ["number", "number"], ["twice"]),
    ]
    mark = helper.make_tensor("mark", TensorProto.STRING, [1], [b"!"])
    words, numbers = (TensorProto.STRING, ["batch", "words"]), (TensorProto.FLOAT, ["batch", 1])
    save_graph(path, nodes, {"text": words, "number": numbers}, {"shout": words, "twice": numbers}, [mark])


SHOUTING = _signature(
    {"text": ("BYTES", (-1,)), "number": ("FP32", (1,))},
    {"shout": ("BYTES", (-1,)), "twice": ("FP32", (1,))},
)


def test_strings_go_in_and_come_out(triton: TritonServer) -> None:
    """Of any length, empty, beyond ASCII; beside numbers; many times; and what is no UTF-8 fails alone."""
    publish_model(triton.repository, "shouting", signature=SHOUTING, fill=_shouting)
    triton.wait_for("shouting", 1)
    words = np.array([["one", "", "größe"], ["x" * 100_000, "日本", " "]], dtype=object)
    number = np.array([[1.5], [-2.0]], dtype=np.float32)
    for _ in range(20):
        answer = _infer(triton.url, "shouting", text=words, number=number)
        assert [[text.decode() for text in row] for row in answer["shout"]] == [
            [w + "!" for w in row] for row in words
        ]
        np.testing.assert_array_equal(answer["twice"], 2 * number)
    with pytest.raises(InferenceServerException, match="utf-8"):
        _infer(triton.url, "shouting", text=np.array([[b"\xff\xfe"]], dtype=object), number=number[:1])
    assert _infer(triton.url, "shouting", text=words, number=number)["shout"][0, 0] == b"one!"
    assert not [event for event in triton.events() if event["event"] in ("unhealthy", "restarting")]


def test_scalars_zero_sizes_and_models_without_a_batch_axis(triton: TritonServer) -> None:
    """A value a row is [rows, 1] for clients, as Triton has no other way; lengths may be 0."""

    def row_sums(path: Path) -> None:
        rows = {"x": (TensorProto.FLOAT, ["batch", "n"])}
        nodes = [helper.make_node("ReduceSum", ["x", "axis"], ["sum"], keepdims=0)]
        axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
        save_graph(path, nodes, rows, {"sum": (TensorProto.FLOAT, ["batch"])}, [axis])

    signature = _signature({"x": ("FP32", (-1,))}, {"sum": ("FP32", ())})
    publish_model(triton.repository, "sums", signature=signature, fill=row_sums)
    triton.wait_for("sums", 1)
    np.testing.assert_array_equal(
        _infer(triton.url, "sums", x=np.ones((2, 3), np.float32))["sum"], [[3], [3]]
    )
    np.testing.assert_array_equal(
        _infer(triton.url, "sums", x=np.ones((2, 0), np.float32))["sum"], [[0], [0]]
    )

    def negative(path: Path) -> None:
        kind = (TensorProto.FLOAT, ["n"])
        save_graph(path, [helper.make_node("Neg", ["x"], ["y"])], {"x": kind}, {"y": kind})

    signature = _signature({"x": ("FP32", (-1,))}, {"y": ("FP32", (-1,))}, batched=False)
    publish_model(triton.repository, "whole", signature=signature, fill=negative)
    triton.wait_for("whole", 1)
    np.testing.assert_array_equal(_infer(triton.url, "whole", x=np.array([1, 2], np.float32))["y"], [-1, -2])
    assert _infer(triton.url, "whole", x=np.zeros(0, np.float32))["y"].shape == (0,)


def test_what_triton_says_of_a_configuration_is_told(triton: TritonServer) -> None:
    """Its answer says only that it failed; its log has the reason."""
    publish_model(triton.repository.parent / "other")
    config = triton.repository.parent / "other" / "linear" / "config.pbtxt"
    config.write_text(config.read_text().replace("max_batch_size: 64", "max_batch_size: -1"))
    config.parent.rename(triton.repository / "linear")
    assert "must be non-negative" in triton.wait_for_event("failed")["reason"]


def _with_weights_beside(path: Path) -> None:
    weights = onnx.numpy_helper.from_array(np.full((3,), 5, dtype=np.float32), "scale")
    kind = (TensorProto.FLOAT, ["batch", 3])
    save_graph(path, [helper.make_node("Mul", ["x", "scale"], ["y"])], {"x": kind}, {"y": kind}, [weights])
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)


def test_weights_beside_the_graph_are_read_and_those_outside_of_the_version_are_not(
    triton: TritonServer,
) -> None:
    """External data by a plain name; a path out of the folder is refused by ONNX Runtime itself."""
    publish_model(triton.repository, "beside", fill=_with_weights_beside)
    triton.wait_for("beside", 1)
    np.testing.assert_array_equal(
        _infer(triton.url, "beside", x=np.ones((2, 3), np.float32))["y"], np.full((2, 3), 5)
    )
    secret = triton.repository.parent / "secret"
    secret.write_bytes(np.full(3, 7, dtype=np.float32).tobytes())

    def escaping(path: Path) -> None:
        _with_weights_beside(path)
        graph = onnx.load(path, load_external_data=False)
        for entry in graph.graph.initializer[0].external_data:
            if entry.key == "location":
                entry.value = "../../../secret"
        path.write_bytes(graph.SerializeToString())

    publish_model(triton.repository, "outside", fill=escaping)
    assert "outside" in triton.wait_for_event("failed")["reason"]


def test_session_options_have_the_native_names(triton: TritonServer) -> None:
    """A value that only ONNX Runtime can refuse shows that it has received it."""
    publish_model(triton.repository, "good")
    config = triton.repository / "good" / "config.pbtxt"
    text = config.read_text()
    assert "intra_op_thread_count" in text
    triton.wait_for("good", 1)
    seen = len(triton.events())
    extra = '\nparameters { key: "session.intra_op.allow_spinning" value { string_value: "0" } }'
    config.write_text(text + extra + '\nparameters { key: "execution_mode" value { string_value: "1" } }\n')
    triton.wait_for_event("loaded", after=seen)
    config.write_text(text + '\nparameters { key: "inter_op_thread_count" value { string_value: "many" } }\n')
    assert "many" in triton.wait_for_event("failed", after=seen)["reason"]


def test_many_models_are_loaded_at_the_same_time(triton: TritonServer) -> None:
    """One that takes long holds up no other: twelve take less than twelve times one."""
    for number in range(12):
        publish_model(triton.repository, f"model_{number}", signature=linear_signature(3))
    for number in range(12):
        triton.wait_for(f"model_{number}", 1, timeout_s=60)
        assert _infer(triton.url, f"model_{number}", x=np.ones((1, 3), np.float32))["y"][0, 0] == 2
