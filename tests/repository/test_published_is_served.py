"""What is published here is what a real Triton serves."""

import numpy as np
import pytest
from onnx_models import publish_model
from triton_server import TritonServer
from tritonclient.grpc import InferenceServerClient, InferInput


@pytest.mark.parametrize("length", [3, None], ids=["vector", "single_value"])
def test_versions_answer_side_by_side(triton: TritonServer, length: int | None) -> None:
    """The first appears as a whole model, the second beside it; a single value a row has length 1 outside."""
    for version, scale in ((1, 2.0), (2, 3.0)):
        assert publish_model(triton.repository, scale=scale, n=length) == version
        triton.wait_for("linear", version)
    rows = np.arange(4 * (length or 1), dtype=np.float32).reshape(4, length or 1)
    request = InferInput("x", list(rows.shape), "FP32")
    request.set_data_from_numpy(rows)
    with InferenceServerClient(triton.url) as client:
        for version, scale in ((1, 2.0), (2, 3.0)):
            answer = client.infer("linear", [request], model_version=str(version)).as_numpy("y")
            np.testing.assert_array_equal(answer.reshape(rows.shape), scale * rows)
