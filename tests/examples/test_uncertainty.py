"""The example with bands of what is not known: its random numbers, model, data, client and whole way."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ROOT
from terminal import Terminal
from torch import nn

from examples.uncertainty.bands import bands_of_draws
from examples.uncertainty.client import BandsIO
from examples.uncertainty.data import KinkedCurve
from examples.uncertainty.model import UncertainRegressor
from examples.uncertainty.points import NOISE_STD, draw_points, true_curve
from examples.uncertainty.reference import boosted_quantiles, gaussian_process
from unitrain.client import ModelInfo
from unitrain.errors import HookError
from unitrain.models.seeded_dropout import PRIME, ConcreteDropout, SeededDropout, SeededUniform
from unitrain.signature import Signature, TensorSpec

README = ROOT / "examples" / "uncertainty" / "README.md"


def seeds(*values: int) -> torch.Tensor:
    return torch.tensor(values)[:, None]


def test_seeded_numbers_are_uniform_and_unrelated() -> None:
    """Over neighbouring seeds: flat in 20 bins, uncorrelated between units, between seeds and between streams."""
    numbers = SeededUniform(32, stream=0)(torch.arange(4000)[:, None]).numpy()
    counts = np.histogram(numbers, 20, (0, 1))[0]
    expected = numbers.size / 20
    assert ((counts - expected) ** 2 / expected).sum() < 50  # chi², 19 degrees of freedom: 36 at 1 %
    between_units = np.corrcoef(numbers.T) - np.eye(32)
    assert np.abs(between_units).max() < 0.08  # 5 standard deviations
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.015
    other = SeededUniform(32, stream=1)(torch.arange(4000)[:, None]).numpy()
    assert abs(np.corrcoef(numbers.ravel(), other.ravel())[0, 1]) < 0.015


def test_seeded_numbers_are_a_function_of_the_seed_alone() -> None:
    """The same in any batch, whatever torch's own generator did; every seed of 64 bits is in (0, 1)."""
    uniform = SeededUniform(16, stream=3)
    first = uniform(seeds(5, 6))
    torch.manual_seed(1)
    torch.rand(7)
    assert torch.equal(uniform(seeds(9, 6, 5)).flip(0)[:2], first)
    extremes = uniform(seeds(-(2**63), 2**63 - 1, -1, 0, PRIME - 1, PRIME))
    assert extremes.min() > 0
    assert extremes.max() < 1


@pytest.mark.parametrize("kind", [SeededDropout, ConcreteDropout])
def test_dropout_keeps_the_mean_and_drops_at_its_rate(kind: type[nn.Module]) -> None:
    """In evaluation mode too: what a served graph has is what a training had."""
    dropout = kind(64, 0.25, stream=0).eval()
    values = dropout(torch.ones(2000, 64), torch.arange(2000)[:, None])
    assert float((values < 0.5).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert float(values.detach().mean()) == pytest.approx(1, abs=0.015)


def test_concrete_dropout_learns_its_rate_and_is_held_up_by_the_prior() -> None:
    """The rate has a gradient from the values; the prior alone, with few samples, moves it towards one half."""
    dropout, layer = ConcreteDropout(8, 0.1, stream=0), nn.Linear(8, 1)
    dropout(torch.ones(4, 8), torch.arange(4)[:, None]).square().sum().backward()
    assert dropout.logit_rate.grad is not None
    assert dropout.logit_rate.grad != 0
    dropout.zero_grad()
    dropout.regularisation(layer, 1e-2, 10).backward()
    assert dropout.logit_rate.grad < 0


def test_points_are_noisy_and_end_where_nothing_is_known() -> None:
    """X fills [-2, 2]; y deviates by 0.2 from x² on the left and 5√x on the right."""
    x, y = draw_points(20_000, seed=1)
    assert np.abs(x).max() <= 2
    assert (y - true_curve(x)).std() == pytest.approx(NOISE_STD, abs=0.005)
    assert true_curve(np.array([-2, 0, 1.44], np.float32)) == pytest.approx([4, 0, 6])


def test_training_draws_new_masks_each_epoch_and_validation_never() -> None:
    """A row's seed is another one in the next epoch; the validation's stay."""
    data = KinkedCurve(n_points=8, n_validation=4, batch_size=8)
    loader = data.train_dataloader()
    first = next(iter(loader))["seed"]
    loader.set_epoch(1)
    assert not torch.equal(next(iter(loader))["seed"].sort(0).values, first.sort(0).values)
    validation = next(iter(data.val_dataloader()))
    assert torch.equal(validation["seed"], next(iter(data.val_dataloader()))["seed"])
    assert validation["seed"].dtype == torch.int64


def test_no_points_are_refused() -> None:
    """The part that would be empty is named."""
    with pytest.raises(HookError, match="n_validation 0"):
        KinkedCurve(n_validation=0)


def test_one_seed_is_one_function() -> None:
    """Answers to one seed are the same in any batch; another seed gives others."""
    model = UncertainRegressor(n_points=10, hidden=[16, 16]).eval()
    x = torch.linspace(-1, 1, 5)[:, None]
    once = model(x, seeds(7, 7, 7, 7, 7))["mean"]
    assert torch.allclose(model(x.flip(0), seeds(7, 7, 7, 7, 7))["mean"].flip(0), once)
    assert not torch.allclose(model(x, seeds(8, 8, 8, 8, 8))["mean"], once)


def test_loss_is_least_at_the_true_mean_and_variance() -> None:
    """Of standardised targets: a mean or a variance beside the true one costs more."""
    model = UncertainRegressor(n_points=10, y_mean=3.0, y_std=2.0, hidden=[4])
    noise = torch.randn(5000, 1, generator=torch.Generator().manual_seed(0))
    batch = {"y": 3 + 2 * 0.5 * noise}

    def cost(mean: float, log_variance: float) -> float:
        outputs = {"mean": torch.full((5000, 1), mean), "log_variance": torch.full((5000, 1), log_variance)}
        return float(model.loss({}, outputs, batch)["nll"])

    true = float(np.log(0.25))
    assert cost(0, true) < min(cost(0.3, true), cost(0, true + 0.5), cost(0, true - 0.5))
    served = model.postprocess({"mean": torch.zeros(1, 1), "log_variance": torch.full((1, 1), true)})
    assert served["mean"].item() == 3
    assert float(served["log_variance"].exp().sqrt()) == pytest.approx(1.0)  # half of y_std


def test_bands_split_what_is_not_known_in_two() -> None:
    """Draws that differ are epistemic, the predicted noise aleatoric; together they cover nine in ten."""
    generator = np.random.default_rng(0)
    draws = generator.normal(0, 0.3, (400, 3000))
    bands = bands_of_draws(draws, np.full_like(draws, 2 * np.log(0.4)))
    assert bands.epistemic.mean() == pytest.approx(0.3, rel=0.02)
    assert bands.aleatoric == pytest.approx(0.4)
    assert bands.total.mean() == pytest.approx(0.5, rel=0.02)
    assert bands.coverage(generator.normal(0, 0.5, 3000)) == pytest.approx(0.9, abs=0.02)


def served() -> ModelInfo:
    inputs = (TensorSpec("x", "FP32", (1,)), TensorSpec("seed", "INT64", (1,)))
    outputs = (TensorSpec("mean", "FP32", (1,)), TensorSpec("log_variance", "FP32", (1,)))
    return ModelInfo(
        "uncertainty", (1,), None, Signature(inputs, outputs, batched=True), 1024, "127.0.0.1:8001"
    )


def test_client_asks_each_point_with_each_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of answers that are the truth with deviation 0.1 between seeds and noise 0.2 the bands are these."""
    io = BandsIO(served(), seeds=30, n_grid=7, n_fresh=200, plot=str(tmp_path / "new" / "bands.png"))
    generator = np.random.default_rng(0)
    asked = list(io.inputs())
    assert len(asked) == 30 * 207
    assert sorted({int(sample["seed"][0]) for sample in asked}) == list(range(30))
    for index, sample in enumerate(asked):
        mean = true_curve(sample["x"]) + generator.normal(0, 0.1, 1)
        io.decode(index, {"mean": mean, "log_variance": np.full(1, 2 * np.log(0.2))}, version=3)
    io.finalize()
    assert io.coverage == pytest.approx(0.93, abs=0.05)
    assert io.grid is not None
    assert io.grid.epistemic.mean() == pytest.approx(0.1, rel=0.15)
    assert "version 3" in capsys.readouterr().out
    assert (tmp_path / "new" / "bands.png").read_bytes().startswith(b"\x89PNG")


def test_client_without_all_answers_draws_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A stream that failed leaves no picture and says how many answers are missing."""
    io = BandsIO(served(), seeds=2, n_grid=3, n_fresh=2, plot=str(tmp_path / "bands.png"))
    io.finalize()
    assert "10 of 10 answers are missing" in capsys.readouterr().out
    assert not (tmp_path / "bands.png").exists()
    with pytest.raises(ValueError, match="at least 2 seeds"):
        BandsIO(served(), seeds=1)


def test_references_cover_what_they_say() -> None:
    """Both of scikit-learn's bands hold about nine in ten; the Gaussian process knows less outside."""
    x, y = draw_points(200, 0)
    fresh, fresh_y = draw_points(1000, 99)
    bands = gaussian_process(x, y, np.concatenate([fresh, [[3.0]]]))
    assert bands.rows(slice(-1)).coverage(fresh_y[:, 0]) == pytest.approx(0.9, abs=0.05)
    assert bands.epistemic[-1] > 3 * np.median(bands.epistemic)
    low, high = boosted_quantiles(x, y, fresh)
    assert ((fresh_y[:, 0] >= low) & (fresh_y[:, 0] <= high)).mean() > 0.7


@pytest.mark.slow
def test_served_bands_cover_and_grow_outside_and_repeat(terminal: Terminal) -> None:
    """README's commands, a short training: 90 % bands hold 85 to 99 %, grow outside, and a seed is one function."""
    terminal.read(README, "--trainer.max_epochs 50 --model.init_args.rate 0.02")
    said = terminal.said("predict uncertainty --config")
    assert 0.85 <= float(said.split("coverage of the 90 % band ")[1].split(",")[0]) <= 0.99
    assert float(said.split("true curve ")[1].split()[0]) < 0.2
    assert float(said.split("outside: ")[1].split()[0]) > 1.2
    plot = terminal.project / "experiments" / "uncertainty" / "served.png"
    assert plot.read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in terminal.said("printf").splitlines()]
    first, other, again = ((line["mean"], line["log_variance"]) for line in lines)
    assert first == again != other
