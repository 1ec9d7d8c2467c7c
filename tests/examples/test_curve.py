"""The noisy curve, its model and its client."""

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ROOT
from terminal import Terminal

from examples.curve_fitting.client import CurveIO
from examples.curve_fitting.data import NoisyCurve
from examples.curve_fitting.model import CurveRegressor
from examples.curve_fitting.points import draw_points, true_curve
from unitrain.client import ModelInfo
from unitrain.errors import HookError
from unitrain.signature import Signature, TensorSpec


@pytest.fixture
def served() -> ModelInfo:
    signature = Signature((TensorSpec("x", "FP32", (1,)),), (TensorSpec("y", "FP32", (1,)),), batched=True)
    return ModelInfo("curve_fitting", (3,), None, signature, 1024, "127.0.0.1:8001")


def test_noise_around_the_curve_has_deviation_one() -> None:
    """X fills [-5, 5] and y deviates from x² by 1, without bias."""
    x, y = draw_points(20_000, seed=1)
    noise = y - true_curve(x)
    assert x.min() < -4.9
    assert x.max() > 4.9
    assert np.abs(x).max() <= 5
    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.03


def test_points_are_a_function_of_their_seed_alone() -> None:
    """Global random state changes nothing; another seed gives other points."""
    first = NoisyCurve(seed=3)
    np.random.seed(99)  # noqa: NPY002 - the global state is what must not matter
    torch.manual_seed(99)
    assert np.array_equal(first.train["y"], NoisyCurve(seed=3).train["y"])
    assert not np.array_equal(first.train["y"], NoisyCurve(seed=4).train["y"])


def test_training_and_validation_points_are_disjoint_and_complete() -> None:
    """800 and 200 of the 1000 points, none in both."""
    data = NoisyCurve()
    train, validation = set(data.train["x"].ravel()), set(data.validation["x"].ravel())
    assert len(data.train["x"]) == 800
    assert len(data.validation["x"]) == 200
    assert not train & validation


def test_batches_map_names_to_columns() -> None:
    """A training batch has x and y, float32 [batch, 1]."""
    batch = next(iter(NoisyCurve(batch_size=16).train_dataloader()))
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {"x": (16, 1), "y": (16, 1)}
    assert batch["x"].dtype == torch.float32


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_empty_part_is_refused(share: float) -> None:
    """A share that leaves nothing for training or validation is named."""
    with pytest.raises(HookError, match="validation_share"):
        NoisyCurve(validation_share=share)


def test_loss_is_the_squared_error_and_metric_its_root() -> None:
    """A perfect answer costs nothing; one off by 2 everywhere costs 4 and has an RMSE of 2."""
    model = CurveRegressor(hidden=4)
    batch = {"x": torch.zeros(5, 1), "y": torch.full((5, 1), 3.0)}
    wrong = {"y": torch.full((5, 1), 5.0)}
    assert model.loss(batch, {"y": batch["y"]}, batch) == 0
    assert model.loss(batch, wrong, batch) == 4
    metrics = model.metrics()
    metrics.update(*model.metric_args(batch, wrong, batch))
    assert metrics.compute()["rmse"] == pytest.approx(2.0)


def test_client_asks_the_grid_and_measures_the_error(
    served: ModelInfo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers off by 0.5 everywhere have an RMSE of 0.5; the plot is written, the version named."""
    io = CurveIO(served, x_min=-1, x_max=1, n_points=5, plot=str(tmp_path / "new" / "curve.png"))
    for index, sample in enumerate(io.inputs()):
        assert sample["x"].shape == (1,)
        io.decode(index, {"y": true_curve(sample["x"]) + 0.5}, version=3)
    io.finalize()
    assert io.rmse == pytest.approx(0.5, abs=1e-6)
    assert "RMSE to the true curve 0.500" in capsys.readouterr().out
    assert (tmp_path / "new" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_client_without_answers_says_so(
    served: ModelInfo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stream that failed at once leaves no plot and no traceback."""
    CurveIO(served, plot=str(tmp_path / "curve.png")).finalize()
    assert "no answers" in capsys.readouterr().out
    assert not (tmp_path / "curve.png").exists()


@pytest.mark.slow
def test_served_curve_follows_the_true_one(terminal: Terminal) -> None:
    """README's commands, trained in full: an RMSE of 0.25 at most, as it says, and a plot."""
    terminal.read(ROOT / "examples" / "curve_fitting" / "README.md", "")
    assert float(terminal.said("predict").split("RMSE to the true curve ")[1].split()[0]) <= 0.25
    plot = terminal.project / "experiments" / "curve_fitting" / "served.png"
    assert plot.read_bytes().startswith(b"\x89PNG")
