"""Weekly carbon dioxide as windows of past, time of year, and future."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule

from examples.forecasting.co2 import Windows, load_co2, split_origins, windows
from unitrain.errors import HookError
from unitrain.loaders import ArrayLoader


class WeeklyCO2(LightningDataModule):
    """The carbon dioxide of Mauna Loa: what was measured, and what came next.

    Batches are mappings of `series`, float32 [batch, 1, n_past] in ppmv, `calendar`, float32
    [batch, 2, n_past + horizon], and `future`, float32 [batch, horizon] in ppmv.

    Args:
        n_past: weeks that a forecast sees.
        horizon: weeks that it predicts.
        batch_size: windows a training batch.

    Raises:
        HookError: the windows are too long for the five years of validation.
    """

    def __init__(self, n_past: int = 104, horizon: int = 26, batch_size: int = 64) -> None:
        super().__init__()
        self.n_past, self.horizon, self.batch_size = n_past, horizon, batch_size
        series = load_co2()
        origins = split_origins(series, n_past, horizon)
        if min(n_past, horizon) < 1 or not all(map(len, origins)):
            raise HookError(
                f"WeeklyCO2: expected n_past of 1 to 1300 weeks and horizon of 1 to 260, got {n_past} and {horizon}"
            )
        self.train, self.validation, self.held_out = (
            windows(series, part, n_past, horizon) for part in origins
        )

    @property
    def change_std(self) -> float:
        """Root mean square of the training futures' distance from the last known value, in ppmv."""
        change = self.train.future - self.train.series[:, 0, -1:]
        return float(np.sqrt(np.mean(np.square(change, dtype=np.float64))))

    def train_dataloader(self) -> ArrayLoader:
        return ArrayLoader(_columns(self.train), batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> ArrayLoader:
        return ArrayLoader(_columns(self.validation), batch_size=256)

    def test_dataloader(self) -> ArrayLoader:
        return ArrayLoader(_columns(self.held_out), batch_size=256)


def _columns(part: Windows) -> dict[str, NDArray[Any]]:
    return {"series": part.series, "calendar": part.calendar, "future": part.future}
