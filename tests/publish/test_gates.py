"""Each gate refuses what it is there for, by its own name."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from pytorch_lightning import LightningModule
from torch import nn

from unitrain.errors import PublishRefused
from unitrain.onnx_export.graph_template import Template, build_template
from unitrain.onnx_export.module_weights import perturbed, weights_of
from unitrain.publish import gates
from unitrain.repository.onnx_session import Tolerance
from unitrain.signature import Signature, TensorSpec


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return {"y": self.layer(x)}


@pytest.fixture(scope="module")
def template() -> Template:
    """A small exported model."""
    return build_template(Net(), {"x": torch.randn(6, 3)}, opset=20, tolerance=Tolerance())


def refusal(gate: str, call, *arguments, **options) -> str:
    """The reason for which a gate refuses."""
    with pytest.raises(PublishRefused) as caught:
        call(*arguments, **options)
    assert caught.value.gate == gate
    return str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.cfloat])
def test_weight_that_is_no_number_is_refused(value: float, dtype: torch.dtype) -> None:
    """Whatever its type, the weight is named; empty and integer ones have nothing to refuse."""
    weights = {"none": torch.empty(0), "counter": torch.tensor(7), "scale": torch.ones(3, 4, dtype=dtype)}
    gates.finite_weights(weights)
    weights["scale"][1, 2] = value
    assert "1 of 3 weights hold NaN or infinity, scale first" in refusal(
        "finite_weights", gates.finite_weights, weights
    )


def test_graph_that_the_checker_refuses_is_refused(template: Template, tmp_path: Path) -> None:
    """A node that reads what nobody writes."""
    path = tmp_path / "model.onnx"
    template.graph.write(path)
    gates.valid_onnx(path)
    broken = template.graph.to_model()
    broken.graph.node[0].input[0] = "nowhere"
    onnx.save_model(broken, path)
    assert "onnx.checker" in refusal("valid_onnx", gates.valid_onnx, path)


def test_graph_with_other_weights_than_torch_is_refused(template: Template, tmp_path: Path) -> None:
    """The output and the place are named; with the right weights the figures are small."""
    weights = perturbed(weights_of(template.served.module), seed=5)
    template.with_weights(weights).write(tmp_path / "right.onnx")
    right = gates.loadable(tmp_path / "right.onnx")
    options = {"max_rows": 9, "tolerance": Tolerance()}
    figures = gates.parity(template.served, right, template.sample, **options)
    assert figures["y"]["max_abs"] < 1e-5
    template.graph.write(tmp_path / "wrong.onnx")
    wrong = gates.loadable(tmp_path / "wrong.onnx")
    assert "y[0" in refusal("parity", gates.parity, template.served, wrong, template.sample, **options)


def test_graph_that_onnxruntime_cannot_load_is_refused(template: Template, tmp_path: Path) -> None:
    """Truncated bytes."""
    path = tmp_path / "model.onnx"
    template.graph.write(path)
    path.write_bytes(path.read_bytes()[:100])
    assert "onnxruntime can't" in refusal("parity", gates.loadable, path)


def test_graph_of_another_signature_is_refused(template: Template) -> None:
    """Both sides are shown."""
    structure = template.graph.structure
    gates.expected_signature(structure, template.signature)
    other = Signature(template.signature.inputs, (TensorSpec("y", "FP32", (3,)),), batched=True)
    reason = refusal("signature", gates.expected_signature, structure, other)
    assert "y: FP32[2]" in reason
    assert "y: FP32[3]" in reason


def test_integer_outputs_may_differ_in_a_thousandth(template: Template) -> None:
    """An argmax of nearly equal values may fall either way; a real difference may not."""
    from unitrain.repository.onnx_session import compare

    want = np.zeros(10_000, np.int64)
    few, many = want.copy(), want.copy()
    few[:5], many[:50] = 1, 1
    assert compare({"y": want}, {"y": few}, Tolerance()).failure is None
    assert compare({"y": want}, {"y": many}, Tolerance()).failure is not None
