"""The signals' autoencoder: its hooks, and what they agree on."""

import pytest
import torch

from unitrain.models.signals import SignalsAutoencoder
from unitrain.module import batch_inputs

MEANS, STDS = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
NAMES = ["Badminton", "Running", "Standing", "Walking"]


@pytest.fixture
def model() -> SignalsAutoencoder:
    torch.manual_seed(0)
    return SignalsAutoencoder(channel_means=MEANS, channel_stds=STDS, width=4, class_names=NAMES)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    z = torch.randn(5, 6, 100, generator=torch.Generator().manual_seed(1))
    signals = z * torch.tensor(STDS)[:, None] + torch.tensor(MEANS)[:, None]
    return {"signals": signals, "label": torch.tensor([0, 1, 2, 3, 0])}


def test_preprocess_standardises_each_channel(
    model: SignalsAutoencoder, batch: dict[str, torch.Tensor]
) -> None:
    """Each channel has its own mean taken off and is divided by its own deviation."""
    z = model.preprocess(batch_inputs(model, batch))["signals"]
    expected = (batch["signals"][0, 2] - 3.0) / 2.0
    assert torch.allclose(z[0, 2], expected)


def test_postprocess_undoes_preprocess(model: SignalsAutoencoder, batch: dict[str, torch.Tensor]) -> None:
    """A perfect reconstruction is served as the signal itself, in its own units; the code as it is."""
    z = model.preprocess(batch_inputs(model, batch))["signals"]
    code = torch.randn(5, 24)
    served = model.postprocess({"code": code, "reconstruction": z})
    assert torch.allclose(served["reconstruction"], batch["signals"], atol=1e-5)
    assert torch.equal(served["code"], code)


@pytest.mark.parametrize(("n_channels", "n_steps", "code_size"), [(6, 100, 24), (2, 64, 8), (1, 12, 3)])
def test_outputs_have_the_shapes_that_the_settings_say(n_channels: int, n_steps: int, code_size: int) -> None:
    """Any number of channels, any multiple of 4 steps, any code."""
    model = SignalsAutoencoder(
        channel_means=[0.0] * n_channels,
        channel_stds=[1.0] * n_channels,
        n_channels=n_channels,
        n_steps=n_steps,
        code_size=code_size,
        width=4,
    )
    outputs = model(signals=torch.zeros(3, n_channels, n_steps))
    assert outputs["code"].shape == (3, code_size)
    assert outputs["reconstruction"].shape == (3, n_channels, n_steps)


def test_steps_that_can_not_be_halved_twice_are_refused() -> None:
    """The decoder doubles twice: 98 steps would come back as 96."""
    with pytest.raises(ValueError, match="multiple of 4, got 98"):
        SignalsAutoencoder(channel_means=[0.0], channel_stds=[1.0], n_channels=1, n_steps=98)


def test_loss_has_two_named_terms(model: SignalsAutoencoder) -> None:
    """The reconstruction's squared error, and the code's mean square by its weight."""
    inputs = {"signals": torch.zeros(2, 6, 100)}
    outputs = {"code": torch.full((2, 24), 2.0), "reconstruction": torch.full((2, 6, 100), 3.0)}
    terms = model.loss(inputs, outputs, {})
    assert {name: pytest.approx(float(term)) for name, term in terms.items()} == {
        "reconstruction": 9.0,
        "code": 4e-3,
    }


def test_metric_counts_a_constant_error_against_the_model(
    model: SignalsAutoencoder, batch: dict[str, torch.Tensor]
) -> None:
    """Perfect is 1; the mean alone is 0; a perfect shape that is off by a constant is less than 1."""
    inputs = model.preprocess(batch_inputs(model, batch))
    z = inputs["signals"]
    values = []
    for reconstruction in (z, z.mean().expand_as(z), z + 0.5):
        metrics = model.metrics()
        metrics.update(*model.metric_args(inputs, {"reconstruction": reconstruction}, batch))
        values.append(float(metrics.compute()["explained_variance"]))
    assert values[0] == pytest.approx(1)
    assert values[1] == pytest.approx(0, abs=1e-5)
    assert values[2] == pytest.approx(1 - 0.25 / float(z.var(unbiased=False)), abs=1e-4)


def test_labels_are_the_classes_by_name(model: SignalsAutoencoder, batch: dict[str, torch.Tensor]) -> None:
    """With names they are spelled out, without they are the numbers."""
    assert model.labels(batch) == {"class": ["Badminton", "Running", "Standing", "Walking", "Badminton"]}
    nameless = SignalsAutoencoder(channel_means=MEANS, channel_stds=STDS, width=4)
    assert torch.equal(nameless.labels(batch)["class"], batch["label"])


def test_summary_shows_signals_with_their_reconstructions(
    model: SignalsAutoencoder, batch: dict[str, torch.Tensor]
) -> None:
    """One panel a signal, four at most, each with two lines a channel."""
    inputs = model.preprocess(batch_inputs(model, batch))
    figure = model.summaries(inputs, model(**inputs), batch)["reconstruction"]()
    assert len(figure.axes) == 4
    assert all(len(axes.lines) == 12 for axes in figure.axes)
