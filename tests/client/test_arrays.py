"""What is converted, what is refused, and how arrays lie in messages."""

import numpy as np
import pytest

from unitrain.client.input_validation import fit_dtype, has_nan
from unitrain.client.metadata import ModelInfo
from unitrain.client.streaming.protobuf_messages import Encoder, decode_response
from unitrain.errors import DataError
from unitrain.signature import DTYPES, Signature, TensorSpec


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.array([1, 2], np.int64), "FP32"),
        (np.array([1.5, -2.25]), "FP32"),
        (np.array([np.nan, np.inf]), "FP32"),
        (np.array([1.0, 2.0]), "INT32"),
        (np.array([255], np.int64), "UINT8"),
        (np.array([1, 2], np.uint8), "FP64"),
        (np.float32(1.5), "FP64"),
        ([0.1, 0.2], "FP32"),
        ([1, 2], "FP32"),
        ([True, False], "BOOL"),
        (["a", "ß"], "BYTES"),
    ],
)
def test_lossless_conversions_are_made(value, dtype):
    """Values that stay the same, and text-like numbers, become the tensor's dtype."""
    array = fit_dtype(value, TensorSpec("x", dtype, (2,)), "here")
    assert array.dtype == np.dtype(DTYPES[dtype].numpy)
    if dtype != "BYTES":
        assert np.allclose(array.astype(np.float64), np.asarray(value, np.float64), equal_nan=True)


@pytest.mark.parametrize(
    ("value", "dtype", "got"),
    [
        (np.array([0.1]), "FP32", "FP64"),
        (np.array([2**24 + 1]), "FP32", "INT64"),
        (np.array([1.5]), "INT64", "FP64"),
        ([1.5], "INT64", "FP64"),
        (np.array([256]), "UINT8", "INT64"),
        (np.array([-1]), "UINT64", "INT64"),
        (np.array([2**63], np.uint64), "INT64", "UINT64"),
        (np.array([np.nan]), "INT32", "FP64"),
        ([1e300], "FP32", "FP64"),
        (np.array([1]), "BOOL", "INT64"),
        (["a"], "FP32", "BYTES"),
        (np.array([1j]), "FP32", "complex128"),
        ([1, None], "FP32", "BYTES"),
        ([[1], [1, 2]], "FP32", "no regular array"),
        ([1.0], "BYTES", "FP64"),
    ],
)
def test_lossy_conversions_are_refused(value, dtype, got):
    """The sentence names where, the tensor, what was expected and what was got."""
    with pytest.raises(DataError, match=f"here: input x .*{dtype}.*") as caught:
        fit_dtype(value, TensorSpec("x", dtype, (1,)), "here")
    assert got in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nan_is_told_from_infinities():
    """Opposite infinities sum to NaN, and are none."""
    assert not has_nan(np.array([np.inf, -np.inf]))
    assert has_nan(np.array([1, np.nan], np.float16))
    assert not has_nan(np.array([3]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_lies_in_messages_as_numpy_has_it(dtype):
    """An array read out of the message that it was put into is the same."""
    from tritonclient.grpc import service_pb2

    if dtype == "BYTES":
        array = np.array([[b"", "ü".encode() * 300]], dtype=object)
    else:
        array = np.array([[0, 1]]).astype(DTYPES[dtype].numpy)
    spec = TensorSpec("x", dtype, (2,))
    model = ModelInfo("m", (1,), 7, Signature((spec,), (spec,), batched=True), 8, "localhost:1")
    request = service_pb2.ModelInferRequest.FromString(Encoder(model).encode([array], 3, "here"))
    assert (request.model_version, request.id) == ("7", "3")
    response = service_pb2.ModelInferResponse(
        model_version="7",
        outputs=[{"name": "x", "datatype": dtype, "shape": [1, 2]}],
        raw_output_contents=request.raw_input_contents,
    )
    outputs, version = decode_response(response, model, 1)
    assert version == 7
    assert outputs["x"].dtype == array.dtype
    assert np.array_equal(outputs["x"], array)


def test_message_over_the_limit_is_refused_with_its_size():
    """An array of 2 GiB (of no memory, being one value shown many times) never reaches gRPC."""
    spec = TensorSpec("x", "UINT8", (-1,))
    model = ModelInfo("m", (1,), None, Signature((spec,), (spec,), batched=False), 0, "localhost:1")
    huge = np.broadcast_to(np.zeros(1, np.uint8), (2**31,))
    with pytest.raises(DataError, match="2,147,483,648 bytes exceeds gRPC's limit"):
        Encoder(model).encode([huge], 1, "here")
