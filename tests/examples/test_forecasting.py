"""Carbon dioxide told half a year ahead: data, network, references, and the whole way."""

import numpy as np
import pytest
import torch
from commands import ROOT
from terminal import Terminal

from examples.forecasting.co2 import (
    FIRST_HELD_OUT,
    FIRST_VALIDATION,
    Series,
    calendar,
    load_co2,
    split_origins,
)
from examples.forecasting.data import WeeklyCO2
from examples.forecasting.reference import (
    SMOOTHING,
    exponential_smoothing,
    mase,
    rmse,
    seasonal_naive,
    seasonal_naive_with_drift,
)
from unitrain.errors import HookError
from unitrain.models.forecasting import Forecaster
from unitrain.models.tcn import TCN

README = ROOT / "examples" / "forecasting" / "README.md"


@pytest.fixture(scope="module")
def series() -> Series:
    return load_co2()


def test_series_is_that_of_its_own_package(series: Series) -> None:
    """What statsmodels' loader gives, where it was measured; a value a week, none missing."""
    from statsmodels.datasets import co2

    data = co2.load_pandas().data["co2"]
    measured = data.notna().to_numpy()
    assert np.array_equal(series.dates[:3], data.index[:3].to_numpy().astype("datetime64[D]"))
    assert np.allclose(series.values[measured], data.to_numpy()[measured])
    assert np.isfinite(series.values).all()
    assert set(np.diff(series.dates).astype(int)) == {7}


def test_no_future_reaches_into_the_next_part(series: Series) -> None:
    """Training ends before 1985, validation before 1990; what is held out begins then."""
    train, validation, held_out = split_origins(series, 104, 26)
    assert series.dates[train[-1] + 25] < FIRST_VALIDATION <= series.dates[validation[0]]
    assert series.dates[validation[-1] + 25] < FIRST_HELD_OUT <= series.dates[held_out[0]]
    assert held_out[-1] + 26 <= len(series.values)


def test_calendar_comes_round_in_a_year() -> None:
    """The same day of two years is nearly the same, half a year later the opposite."""
    dates = np.array(["1990-03-01", "1991-03-01", "1990-08-30"], "datetime64[D]")
    first, second, opposite = calendar(dates).T
    assert np.allclose(first, second, atol=0.02)
    assert np.allclose(first, -opposite, atol=0.02)


def test_windows_join_past_and_future(series: Series) -> None:
    """A window's future begins in the week after its past, and the calendar has both."""
    data = WeeklyCO2(n_past=60, horizon=8)
    batch = next(iter(data.val_dataloader()))
    origin = data.validation.origins[0]
    assert torch.equal(
        batch["series"][0, 0], torch.from_numpy(series.values[origin - 60 : origin].astype(np.float32))
    )
    assert torch.equal(
        batch["future"][0], torch.from_numpy(series.values[origin : origin + 8].astype(np.float32))
    )
    assert batch["calendar"].shape[1:] == (2, 68)


def test_windows_that_are_too_long_are_refused() -> None:
    """Six years do not fit into five of validation."""
    with pytest.raises(HookError, match="horizon"):
        WeeklyCO2(horizon=312)


@pytest.mark.parametrize(("n_blocks", "kernel_size"), [(1, 3), (3, 2), (4, 5)])
def test_tcn_sees_its_receptive_field_and_nothing_later(n_blocks: int, kernel_size: int) -> None:
    """A change of one step reaches exactly `receptive_field` steps from there on, none before."""
    torch.manual_seed(0)
    tcn = TCN(2, 4, n_blocks=n_blocks, kernel_size=kernel_size).double().eval()
    steps = 2 * tcn.receptive_field
    x = torch.randn(1, 2, steps, dtype=torch.float64)
    changed = x.clone()
    changed[..., 3] += 1
    moved = (tcn(changed) - tcn(x)).abs().sum(1)[0] > 1e-12
    assert not moved[:3].any()
    assert moved[3]
    assert not moved[3 + tcn.receptive_field :].any()
    assert moved[3 : 3 + tcn.receptive_field].sum() > tcn.receptive_field // 2


def test_tcn_refuses_what_is_no_network() -> None:
    """No layers and no channels are told."""
    with pytest.raises(ValueError, match="n_blocks"):
        TCN(1, n_blocks=0)


def test_forecast_moves_with_the_level_of_the_past() -> None:
    """100 ppmv more in the past are 100 more in the future: a trend takes the network nowhere new."""
    torch.manual_seed(0)
    model = Forecaster(n_past=30, horizon=5, change_std=2.0, channels=4, n_blocks=2).eval()
    series, times = 340 + torch.randn(3, 1, 30), torch.randn(3, 2, 35)
    assert model(series, times)["forecast"].shape == (3, 5)
    assert torch.allclose(
        model(series + 100, times)["forecast"], model(series, times)["forecast"] + 100, atol=1e-3
    )


def test_forecast_depends_on_the_calendar_of_the_future() -> None:
    """A later date of one future week changes that week's forecast, and none before it."""
    torch.manual_seed(0)
    model = Forecaster(n_past=30, horizon=5, channels=4, n_blocks=2).eval()
    series, times = torch.randn(1, 1, 30), torch.randn(1, 2, 35)
    later = times.clone()
    later[..., 32] += 1
    moved = (model(series, later)["forecast"] - model(series, times)["forecast"]).abs()[0] > 1e-6
    assert moved.tolist()[:3] == [False, False, True]


def test_references_are_what_they_are_called() -> None:
    """On a rising line a year before is off by a year's rise, and drift and smoothing mend it."""
    dates = np.arange(600) * np.timedelta64(7, "D") + np.datetime64("1985-01-05")
    line = Series(dates, 300 + 0.05 * np.arange(600) + np.sin(2 * np.pi * np.arange(600) / 52))
    origins = np.array([500, 540])
    future = line.values[origins[:, None] + np.arange(26)]
    assert np.allclose(future - seasonal_naive(line, origins, 26), 52 * 0.05)
    assert rmse(seasonal_naive_with_drift(line, origins, 26), future) < 1e-9
    assert rmse(exponential_smoothing(line, origins, 26), future) < 0.3
    assert mase(seasonal_naive(line, origins, 26), future, line.values[:500]) == pytest.approx(1)


def test_exponential_smoothing_is_that_of_statsmodels(series: Series) -> None:
    """One pass over the series gives the forecast that its own model gives from the weeks before alone."""
    from statsmodels.tsa.holtwinters import ExponentialSmoothing

    origin, (level, trend, seasonal) = 1900, SMOOTHING
    model = ExponentialSmoothing(
        series.values[:origin],
        trend="add",
        seasonal="add",
        seasonal_periods=52,
        initialization_method="heuristic",
    )
    fitted = model.fit(
        smoothing_level=level, smoothing_trend=trend, smoothing_seasonal=seasonal, optimized=False
    )
    ours = exponential_smoothing(series, np.array([origin]), 26)[0]
    assert np.allclose(ours, fitted.forecast(26), atol=1e-9)


@pytest.mark.slow
def test_served_forecasts_are_better_than_a_year_before(terminal: Terminal) -> None:
    """README's commands, a quarter of the training: better than last year's values and their rise (0.898)."""
    terminal.read(README, "--trainer.max_epochs 10")
    errors = {
        line.split("  ")[0].strip(): float(line.split("RMSE ")[1].split()[0])
        for line in terminal.said("predict forecasting").splitlines() if "RMSE" in line
    }  # fmt: skip
    assert errors["served"] < 0.85 * errors["seasonal naive with drift"]
    assert errors["seasonal naive with drift"] < errors["seasonal naive"]
