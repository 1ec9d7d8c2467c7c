"""Answers as a snapshot that TensorBoard shows."""

from pathlib import Path

import numpy as np
import pytest

from unitrain.client.io.sinks import open_sink
from unitrain.client.metadata import ModelInfo
from unitrain.errors import DataError
from unitrain.signature import Signature, TensorSpec

OUTPUTS = (
    TensorSpec("code", "FP32", (4,)),
    TensorSpec("label", "INT64", (1,)),
    TensorSpec("name", "BYTES", ()),
)


def model() -> ModelInfo:
    """A model with a vector, a number and a text as outputs."""
    import inspect

    known = {
        "name": "signals",
        "versions": [3],
        "signature": Signature((TensorSpec("x", "FP32", (4,)),), OUTPUTS, batched=True),
        "max_batch_size": 8,
        "metadata": {},
        "url": "",
        "version": None,
    }
    return ModelInfo(
        **{name: known[name] for name in inspect.signature(ModelInfo).parameters if name in known}
    )


def test_vectors_are_points_and_single_numbers_and_texts_are_labels(tmp_path: Path) -> None:
    """Beside the version and the sample; a failed sample is left out."""
    sink = open_sink(f"projector:{tmp_path / 'run'}", model(), None)
    for i in range(3000):
        values = {
            "code": np.full(4, i, "f4"),
            "label": np.array([i % 3]),
            "name": np.array(f"ä{i}".encode(), dtype=object),
        }
        if i != 5:
            sink.write(i, values, 3)
    sink.close()
    snapshot = tmp_path / "run" / "served" / "embeddings" / "step_3"
    code = np.fromfile(snapshot / "tensor_0.bytes", "<f4").reshape(-1, 4)
    expected = [i for i in range(3000) if i != 5]
    np.testing.assert_allclose(code[:, 0], expected, rtol=2e-5)
    lines = [line.split("\t") for line in (snapshot / "metadata.tsv").read_text().splitlines()]
    assert lines[0] == ["label", "name", "version", "sample"]
    assert lines[8] == ["2", "ä8", "3", "8"]


def test_a_folder_that_can_not_be_is_refused_at_once(tmp_path: Path) -> None:
    """Before anything is asked of the server."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="can't be written"):
        open_sink(f"projector:{tmp_path / 'file' / 'x'}", model(), None)
