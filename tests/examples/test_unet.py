"""The U-Net and its losses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.segmentation import DiceScore

from examples.segmentation.tiling import stitch, tiles
from unitrain.errors import HookError
from unitrain.models.losses import LOSSES, dice_loss, focal_loss
from unitrain.models.unet import ForegroundIoU, UNet
from unitrain.onnx_export.graph_template import build_template
from unitrain.onnx_export.module_weights import weights_of
from unitrain.repository.onnx_session import Tolerance, run_onnx


def small(dimensions: int = 2, **options: Any) -> UNet:
    """An untrained one, in whose norms something is to be seen."""
    torch.manual_seed(0)
    names = ["background", "a", "b"]
    model = UNet(class_names=names, dimensions=dimensions, width=4, **options).eval()  # type: ignore[arg-type]
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-0.2, 0.2)
    return model


def random_image(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def hard(target: torch.Tensor, classes: int = 3) -> torch.Tensor:
    """Logits that are as good as certain of these classes."""
    return torch.nn.functional.one_hot(target, classes).movedim(-1, 1).float() * 100


@pytest.mark.parametrize("shape", [(2, 8, 9), (2, 4, 5, 6)])
def test_dice_loss_of_certain_answers_is_torchmetrics(shape: tuple[int, ...]) -> None:
    """1 - the Dice score of all pixels together, the mean over classes; nothing for perfect answers."""
    generator = torch.Generator().manual_seed(0)
    target, guess = (torch.randint(0, 3, shape, generator=generator) for _ in range(2))
    score = DiceScore(3, average="macro", input_format="index", aggregation_level="global")
    expected = 1 - float(score(guess.reshape(1, -1), target.reshape(1, -1)))
    assert float(dice_loss(hard(guess), target, smooth=0)) == pytest.approx(expected, abs=1e-6)
    assert float(dice_loss(hard(target), target)) == pytest.approx(0, abs=1e-6)


def test_focal_loss_without_gamma_is_the_cross_entropy_and_with_it_forgives_what_is_nearly_right() -> None:
    """The surer a right answer, the less of its cross entropy counts."""
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(2, 3, 5, 5, generator=generator), torch.randint(0, 3, (2, 5, 5))
    plain = torch.nn.functional.cross_entropy(logits, target)
    assert torch.allclose(focal_loss(logits, target, gamma=0), plain)
    sure = torch.tensor([[0.0, np.log(9.0)]])  # 0.9 for class 1
    ratio = focal_loss(sure, torch.tensor([1])) / torch.nn.functional.cross_entropy(sure, torch.tensor([1]))
    assert float(ratio) == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_each_loss_is_learned_by_in_two_and_three_dimensions(name: str, dimensions: int) -> None:
    """Forty steps on one batch take the loss to less than half, and every parameter has a gradient."""
    model = small(dimensions, losses={name: 1.0}, depth=1).train()
    image = random_image(2, 1, *[8] * dimensions)
    batch = {"image": image, "mask": (image[:, 0] // 86).to(torch.uint8)}
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    inputs = model.preprocess({"image": image})
    values = []
    for _ in range(40):
        (loss,) = model.loss(inputs, model(**inputs), batch).values()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < values[0] / 2
    assert all(p.grad is not None for p in model.parameters())


def test_iou_is_of_all_pixels_together_and_leaves_the_background_out() -> None:
    """Class a overlaps by 1 of 3, class b by 2 of 2: two thirds, however the pixels are spread over images."""
    metric = ForegroundIoU(3)
    metric.update(torch.tensor([[1, 1, 0, 2]]), torch.tensor([[1, 0, 1, 2]]))
    metric.update(torch.tensor([[0, 0, 0, 2]]), torch.tensor([[0, 0, 0, 2]]))
    assert float(metric.compute()) == pytest.approx((1 / 3 + 1) / 2)


@pytest.mark.parametrize(
    ("dimensions", "shape", "size"), [(2, (150, 133), 96), (2, (200, 40), 80), (3, (12, 80, 20), 64)]
)
def test_stitched_tiles_are_the_whole_image_s_answer(
    dimensions: int, shape: tuple[int, ...], size: int
) -> None:
    """With the model's margin no pixel is answered otherwise; with none, some are."""
    model = small(dimensions)
    image = random_image(1, 1, *shape)

    def answer(part: torch.Tensor) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            return model(**model.preprocess({"image": part}))["logits"][0, 1].numpy()

    def stitched(margin: int) -> np.ndarray[Any, Any]:
        found = tiles(shape, size, margin)
        return stitch(shape, [(t, answer(image[:, :, *t.source])) for t in found])

    whole = answer(image)
    assert np.abs(stitched(model.margin) - whole).max() < 1e-4
    assert np.abs(stitched(0) - whole).max() > 1e-2


@pytest.mark.parametrize(("dimensions", "sizes"), [(2, [(45, 67), (7, 130)]), (3, [(11, 21, 17)])])
def test_exported_graph_takes_any_size_and_other_weights(
    dimensions: int, sizes: list[tuple[int, ...]], tmp_path: Path
) -> None:
    """Of sizes that it was not exported with onnxruntime gives torch's classes, with weights that were swapped in."""
    model = small(dimensions, depth=1)
    template = build_template(
        model, {"image": random_image(2, 1, *[8] * dimensions)}, opset=20, tolerance=Tolerance()
    )
    assert template.swappable
    assert template.signature.inputs[0].dims == (1, *[-1] * dimensions)
    (output,) = template.signature.outputs
    assert (output.name, output.dtype, output.dims) == ("classes", "UINT8", (-1,) * dimensions)
    template.with_weights(weights_of(model)).write(tmp_path / "model.onnx", external=False)
    for size in sizes:
        image = random_image(3, 1, *size)
        expected = model.postprocess(model(**model.preprocess({"image": image})))["classes"].numpy()
        found = run_onnx(tmp_path / "model.onnx", {"image": image.numpy()})["classes"]
        assert found.shape == (3, *size)
        assert (found != expected).mean() < 1e-3


def test_a_model_that_cannot_be_is_refused() -> None:
    """An unknown loss is named beside those that there are; so are other dimensions and missing channels."""
    with pytest.raises(HookError, match="cross_entropy, dice, focal, got dise"):
        small(losses={"dise": 1.0})
    with pytest.raises(HookError, match="2 or 3 dimensions"):
        small(4)
    with pytest.raises(HookError, match="each of 3 channels, got 1 and 1"):
        small(n_channels=3)


def test_projector_is_shown_features_by_the_share_of_each_class() -> None:
    """One point a patch, with how much of it is foreground."""
    model = small()
    image = random_image(3, 1, 16, 16)
    batch = {"image": image, "mask": torch.zeros(3, 16, 16, dtype=torch.uint8)}
    batch["mask"][1, :8] = 2
    outputs = model(**model.preprocess({"image": image}))
    assert tuple(model.embeddings({}, outputs, batch)["features"].shape) == (3, 16)
    labels = {name: list(map(int, values)) for name, values in model.labels(batch).items()}
    assert labels == {"percent_a": [0, 0, 0], "percent_b": [0, 50, 0]}
