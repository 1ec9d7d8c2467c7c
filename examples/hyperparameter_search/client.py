"""Query the served model for the held-out cars, and print the error of the answers."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from examples.hyperparameter_search.cars import load_cars
from unitrain.client import ClientIO, ModelInfo


class CarsIO(ClientIO):
    """Queries the consumption of the cars that no training and no search has seen, and prints the error.

    Args:
        model: description of the served model.

    Attributes:
        rmse: root mean square error of the answers, in miles a gallon; NaN before any answer.
    """

    def __init__(self, model: ModelInfo) -> None:
        super().__init__(model)
        self._cars = load_cars("held_out")
        self._errors: list[float] = []
        self.rmse = float("nan")

    def inputs(self) -> Iterator[dict[str, NDArray[np.float32]]]:
        for features in self._cars.features:
            yield {"features": features}

    def decode(self, index: int, outputs: dict[str, NDArray[np.float32]], version: int) -> None:
        self._errors.append(float(outputs["prediction"][0] - self._cars.miles_per_gallon[index, 0]))

    def finalize(self) -> None:
        if not self._errors:
            print("no answers: nothing to compare")
            return
        self.rmse = float(np.sqrt(np.mean(np.square(self._errors))))
        print(f"RMSE {self.rmse:.2f} miles a gallon, of {len(self._errors)} held-out cars")
