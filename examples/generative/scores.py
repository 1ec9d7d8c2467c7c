"""Similarity of generated digits to real ones, by published measures."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


def explained_variance(original: Floats, rebuilt: Floats, mean: Floats) -> float:
    """1 - residual / total sum of squares about a mean image; 1 is perfect."""
    return float(1 - np.square(original - rebuilt).sum() / np.square(original - mean).sum())


def frechet_distance(real: Floats, made: Floats) -> float:
    """The Fréchet distance of two clouds of points [point, feature], each taken for a normal one; 0: alike.

    Heusel et al. 2017, https://arxiv.org/abs/1706.08500, with other features.
    """
    difference = real.mean(0) - made.mean(0)
    first, second = np.cov(real, rowvar=False), np.cov(made, rowvar=False)
    # The trace of the product's square root; a matrix root would fail where a feature never varies.
    root = np.sqrt(np.maximum(np.linalg.eigvals(first @ second).real, 0)).sum()
    return float(difference @ difference + np.trace(first) + np.trace(second) - 2 * root)


def two_sample_accuracy(real: Floats, made: Floats, *, seed: int = 0) -> float:
    """Return the cross-validated accuracy of a support vector machine on real and generated digits; 0.5 is chance.

    Lopez-Paz and Oquab 2017, https://arxiv.org/abs/1610.06545.

    Args:
        real: real images [image, ...].
        made: generated images [image, ...], of which as many are used.
        seed: seed of the folds.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.svm import SVC

    n = min(len(real), len(made))
    both = np.concatenate([real[:n], made[:n]]).reshape(2 * n, -1)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    return float(cross_val_score(SVC(C=10), both, np.repeat([0, 1], n), cv=folds).mean())


class DigitFeatures:
    """Return features of a digit classifier: the hidden units of scikit-learn's MLPClassifier.

    Args:
        images: real ones, [image, ...], to train it with.
        labels: their digits.
    """

    def __init__(self, images: Floats, labels: NDArray[np.int64]) -> None:
        from sklearn.neural_network import MLPClassifier

        self._classifier = MLPClassifier((64,), max_iter=400, random_state=0)
        self._classifier.fit(images.reshape(len(images), -1) / 16, labels)

    def __call__(self, images: Floats) -> Floats:
        """The hidden units' values, [image, unit]."""
        flat = images.reshape(len(images), -1) / 16
        values: Floats = np.maximum(flat @ self._classifier.coefs_[0] + self._classifier.intercepts_[0], 0)
        return values
