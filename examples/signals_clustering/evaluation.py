"""Quality of codes and reconstructions, compared with principal component analysis (PCA); numpy alone."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


def explained_variance(signals: Floats, reconstructions: Floats) -> float:
    """1 - residual / total sum of squares over all values together; 1 is perfect, 0 as good as their mean."""
    residual = np.square(signals - reconstructions).sum()
    return float(1 - residual / np.square(signals - signals.mean()).sum())


def nearest_neighbour_accuracy(
    known: Floats, known_labels: NDArray[np.int64], queried: Floats, queried_labels: NDArray[np.int64]
) -> float:
    """Share of the queried codes whose nearest known code, by Euclidean distance, has their class.

    Args:
        known: codes [sample, value].
        queried: codes [sample, value].
        known_labels: classes [sample].
        queried_labels: classes [sample].
    """
    distances = np.square(queried[:, None] - known[None]).sum(-1)
    return float((known_labels[distances.argmin(1)] == queried_labels).mean())


@dataclass(frozen=True)
class Pca:
    """The linear code of least squared error.

    Attributes:
        mean: mean of the fitted signals, [value].
        components: orthonormal directions, [code value, value].
    """

    mean: Floats
    components: Floats

    @classmethod
    def fit(cls, samples: Floats, code_size: int) -> "Pca":
        """The PCA of `samples`, [sample, ...], each flattened."""
        flat = samples.reshape(len(samples), -1)
        mean = flat.mean(0)
        _, _, directions = np.linalg.svd(flat - mean, full_matrices=False)
        return cls(mean, directions[:code_size])

    def encode(self, samples: Floats) -> Floats:
        """Codes [sample, code value]."""
        codes: Floats = (samples.reshape(len(samples), -1) - self.mean) @ self.components.T
        return codes

    def reconstruct(self, samples: Floats) -> Floats:
        """The samples from their codes, shaped as they came."""
        return (self.encode(samples) @ self.components + self.mean).reshape(samples.shape)
