"""The exported graph answers as torch does, for every architecture, with whatever weights."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from slow_cases import slow_except
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from zoo import MLP, ZOO, AnyLength, PixelClasses

from unitrain.errors import ExportError, HookError
from unitrain.module import UnitrainModule
from unitrain.onnx_export.graph_template import build_template
from unitrain.onnx_export.module_weights import perturbed, weights_of
from unitrain.onnx_export.served_graph import run_torch
from unitrain.repository.onnx_session import Tolerance, compare, run_onnx

EXPORTED_ANEW = {"spectral layer with complex weights"}
"""Architectures for which swapping weights is not right, so that each version is exported anew."""


QUICK = [
    "mlp",
    "residual conv with batch norm",
    "u-net with interpolation",
    "several inputs, bool, named tuple",
    "transformer with a buffer that is not saved",
    "gru",
]
"""Architectures that `make test` exports."""


@pytest.mark.parametrize("name", slow_except(QUICK, ZOO))
def test_graph_with_swapped_weights_answers_as_torch_at_any_batch_size(name: str) -> None:
    """Weights that the template never saw, at batch sizes that it never saw."""
    build, sample = ZOO[name]
    torch.manual_seed(0)
    module = build()
    tolerance = Tolerance(1e-2, 1e-2) if name == "half precision inside" else Tolerance()
    template = build_template(module, sample, opset=20, tolerance=tolerance)
    assert template.swappable is (name not in EXPORTED_ANEW)
    assert template.signature.batched
    trained = perturbed(weights_of(module), seed=99)
    model = template.with_weights(trained).to_model().SerializeToString()
    for rows in (1, 2, 13):
        inputs = {key: np.concatenate([value.numpy()] * 3)[:rows] for key, value in sample.items()}
        expected = run_torch(template.served, inputs)
        assert compare(expected, run_onnx(model, inputs), tolerance).failure is None
    reference = build()
    reference.load_state_dict(trained, strict=False)
    other = {key: value.numpy() for key, value in sample.items()}
    template.served.module = reference.eval()
    assert compare(run_torch(template.served, other), run_onnx(model, other), tolerance).failure is None


def test_module_is_left_as_it_was() -> None:
    """Mode, frozen parts, weights, gradients and random numbers are those of before."""
    torch.manual_seed(0)
    module = PixelClasses()
    module.train()
    module.conv.eval()
    module.conv.bias.requires_grad = False
    before, random_state = weights_of(module), torch.get_rng_state()
    build_template(module, ZOO["uint8 in and out, argmax, topk"][1], opset=20, tolerance=Tolerance())
    assert (module.training, module.conv.training) == (True, False)
    assert (module.conv.bias.requires_grad, module.conv.weight.requires_grad) == (False, True)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights_of(module).items())
    assert torch.equal(random_state, torch.get_rng_state())


def test_signature_names_dtypes_and_open_axes() -> None:
    """What Triton is told: uint8 stays uint8, an axis of any length is -1."""
    pixels = build_template(
        PixelClasses(), ZOO["uint8 in and out, argmax, topk"][1], opset=20, tolerance=Tolerance()
    )
    assert str(pixels.signature).startswith(
        "(image: UINT8[3, 6, 6]) -> (classes: UINT8[6, 6], scores: FP32[2, 6, 6])"
    )
    lengths = build_template(
        AnyLength(), ZOO["a further axis of any length"][1], opset=20, tolerance=Tolerance()
    )
    assert str(lengths.signature).startswith("(series: FP32[2, ?]) -> (mean: FP32[3], each: FP32[3, ?])")
    longer = {"series": np.ones((2, 2, 31), np.float32)}
    assert run_onnx(lengths.graph.to_model(), longer)["each"].shape == (2, 3, 31)


def test_output_without_a_batch_axis_makes_the_signature_unbatched() -> None:
    """Triton must not cut such an answer into rows."""

    class Total(MLP):
        def forward(self, x):
            return {"total": self.net(x).sum(0)}

    template = build_template(Total(), {"x": torch.ones(3, 4)}, opset=20, tolerance=Tolerance())
    assert not template.signature.batched
    assert str(template.signature).startswith("(x: FP32[?, 4]) -> (total: FP32[2])")


def test_random_forward_is_refused_with_the_reason() -> None:
    """A graph that draws can't be proven to answer as torch does."""

    class Draws(MLP):
        def forward(self, x):
            return self.net(x) + torch.randn_like(x[:, :2])

    with pytest.raises(ExportError, match=r"differently from call to call.*randomness"):
        build_template(Draws(), {"x": torch.ones(3, 4)}, opset=20, tolerance=Tolerance())


def test_outputs_that_are_no_tensors_are_refused() -> None:
    """The message names the output and its type."""

    class Says(MLP):
        def forward(self, x):
            return {"y": self.net(x), "note": "text"}

    with pytest.raises(HookError, match="returned a str as note"):
        build_template(Says(), {"x": torch.ones(3, 4)}, opset=20, tolerance=Tolerance())


def test_output_named_like_an_input_is_refused() -> None:
    """An autoencoder that returns `x` for `x` is told to rename it."""

    class Same(MLP):
        def forward(self, x):
            return {"x": self.net(x)}

    with pytest.raises(HookError, match="x is the name of an input and of an output"):
        build_template(Same(), {"x": torch.ones(3, 4)}, opset=20, tolerance=Tolerance())


def test_weights_under_another_shape_are_refused() -> None:
    """A swap never makes a graph that does not fit."""
    template = build_template(MLP(), {"x": torch.ones(3, 4)}, opset=20, tolerance=Tolerance())
    with pytest.raises(ExportError, match=r"net\.0\.weight"):
        template.graph.with_weights({"net.0.weight": torch.ones(3, 3)}, prefix="module.")
    with pytest.raises(ExportError, match=r"net\.0\.bias"):
        template.graph.with_weights(
            {"net.0.bias": template.served.module.net[0].bias.double()}, prefix="module."
        )


def test_parity_names_the_value_that_is_off() -> None:
    """Output, place, both values and the tolerance."""
    want = {"y": np.array([[1.0, 2.0]], np.float32)}
    got = {"y": np.array([[1.0, 2.5]], np.float32)}
    difference = compare(want, got, Tolerance(1e-4, 1e-3))
    assert difference.failure == (
        "y[0, 1] is 2.5 in onnxruntime and 2.0 in torch (allowed: 0.0001 + 0.001 of the value)"
    )
    assert difference.by_output["y"]["max_abs"] == 0.5
    assert compare({"y": np.array([np.nan])}, {"y": np.array([np.nan])}, Tolerance()).failure is None
    assert compare({"y": np.array([np.inf])}, {"y": np.array([1.0])}, Tolerance()).failure is not None
    assert compare({"y": np.array([1.0])}, {"y": np.array([np.nan])}, Tolerance()).failure is not None


def test_plain_parameter_of_a_servable_module_is_swapped_too() -> None:
    """A parameter used directly, not through a layer."""

    class Scaled(UnitrainModule):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return {"y": x * self.scale}

    module = Scaled()
    template = build_template(module, {"x": torch.ones(3, 1)}, opset=20, tolerance=Tolerance())
    assert template.swappable
    model = template.with_weights({"scale": torch.tensor([7.0])})
    assert run_onnx(model.to_model(), {"x": np.ones((2, 1), np.float32)})["y"].tolist() == [[7.0], [7.0]]
