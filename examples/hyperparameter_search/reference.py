"""Scikit-learn's references on the same cars: ridge regression and gradient boosting, each searched for as well.

`python -m examples.hyperparameter_search.reference` prints their errors on validation and held-out cars.
"""

import argparse
from typing import Any

import numpy as np

from examples.hyperparameter_search.cars import load_cars


def main() -> None:
    """Fit both with the settings that are best on the validation cars, and print what they came to."""
    argparse.ArgumentParser(
        prog="python -m examples.hyperparameter_search.reference", description=__doc__
    ).parse_args()
    from sklearn.ensemble import GradientBoostingRegressor
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    ridges = [make_pipeline(StandardScaler(), Ridge(alpha)) for alpha in (0.1, 1, 10, 100)]
    boosted = [
        GradientBoostingRegressor(n_estimators=n, max_depth=depth, learning_rate=rate, random_state=0)
        for n in (100, 300) for depth in (2, 3, 4) for rate in (0.03, 0.1)
    ]  # fmt: skip
    print("RMSE in miles a gallon")
    for name, candidates in (("ridge regression", ridges), ("gradient boosting", boosted)):
        validation, held_out = best_of(candidates)
        print(f"  {name}, best of {len(candidates)}: validation {validation:.2f}, held out {held_out:.2f}")


def best_of(candidates: list[Any]) -> tuple[float, float]:
    """RMSE on validation and on held-out cars of the regressor that is best on the former, in miles a gallon."""
    train = load_cars("train")
    fitted = [c.fit(train.features, train.miles_per_gallon[:, 0]) for c in candidates]

    def rmse(regressor: Any, part: Any) -> float:
        cars = load_cars(part)
        error = regressor.predict(cars.features) - cars.miles_per_gallon[:, 0]
        return float(np.sqrt(np.square(error).mean()))

    best = min(fitted, key=lambda regressor: rmse(regressor, "validation"))
    return rmse(best, "validation"), rmse(best, "held_out")


if __name__ == "__main__":
    main()
