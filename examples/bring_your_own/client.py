"""Query the served model for the held-out patients, and compare with scikit-learn."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from examples.bring_your_own.patients import Parts, load_diabetes_parts
from unitrain.client import ClientIO, ModelInfo


class DiabetesIO(ClientIO):
    """Queries the progression of the 88 held-out patients, and prints errors beside scikit-learn's.

    Args:
        model: description of the served model.
        seed: seed of the split; use the data module's.
        plot: the picture's path, relative to the working folder; empty: none.

    Attributes:
        rmse: root mean square errors on the held-out patients by what predicted them; empty before any answer.
    """

    def __init__(
        self, model: ModelInfo, *, seed: int = 0, plot: str = "experiments/bring_your_own/served.png"
    ) -> None:
        super().__init__(model)
        self._parts = load_diabetes_parts(seed)
        self._plot = Path(plot) if plot else None
        self._answered: dict[int, float] = {}
        self.rmse: dict[str, float] = {}

    def inputs(self) -> Iterator[dict[str, NDArray[np.float32]]]:
        for features in self._parts.held_out.features:
            yield {"features": features}

    def decode(self, index: int, outputs: dict[str, NDArray[np.float32]], version: int) -> None:
        self._answered[index] = float(outputs["output"][0])

    def finalize(self) -> None:
        if not self._answered:
            print("no answers: nothing to compare or draw")
            return
        rows = list(self._answered)
        truth = self._parts.held_out.target[rows, 0]
        predicted = {"served": np.array(list(self._answered.values()), np.float32)}
        predicted |= {name: values[rows] for name, values in references(self._parts).items()}
        self.rmse = {name: float(np.sqrt(np.mean((p - truth) ** 2))) for name, p in predicted.items()}
        print(f"RMSE on {len(rows)} held-out patients: ", end="")
        print(", ".join(f"{name} {value:.1f}" for name, value in self.rmse.items()))
        if self._plot is not None:
            _draw(truth, predicted, self._plot)
            print(f"plot {self._plot}")


def references(parts: Parts) -> dict[str, NDArray[np.float64]]:
    """Return scikit-learn's predictions for the held-out patients, [row] by model, after training and validation patients.

    The mean of the target is the one that anything has to be better than.
    """
    from sklearn.ensemble import GradientBoostingRegressor
    from sklearn.linear_model import LinearRegression

    features = np.concatenate([parts.train.features, parts.validation.features])
    target = np.concatenate([parts.train.target, parts.validation.target])[:, 0]
    held_out = parts.held_out.features
    return {
        "linear regression": LinearRegression().fit(features, target).predict(held_out),
        "gradient boosting": GradientBoostingRegressor(random_state=0)
        .fit(features, target)
        .predict(held_out),
        "mean": np.full(len(held_out), target.mean()),
    }


def _draw(truth: NDArray[np.float32], predicted: dict[str, NDArray[np.floating]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    shown = [name for name in predicted if name != "mean"]
    panels = figure.subplots(1, len(shown), sharex=True, sharey=True)
    for axes, name in zip(panels, shown, strict=True):
        axes.plot([0, 350], [0, 350], color="0.7", linestyle="--")
        axes.scatter(truth, predicted[name], s=14, alpha=0.7)
        rmse = np.sqrt(np.mean((predicted[name] - truth) ** 2))
        axes.set(title=f"{name}, RMSE {rmse:.1f}", xlabel="progression after a year")
    panels[0].set_ylabel("predicted")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
