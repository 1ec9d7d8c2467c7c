"""The served digits beside scikit-learn's: PCA of the same code size, and a mixture of normal distributions.

`python -m examples.generative.reference` reads what the client wrote and prints a table.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.generative.scores import (
    DigitFeatures,
    explained_variance,
    frechet_distance,
    two_sample_accuracy,
)
from unitrain.datamodules.digit_arrays import INK, load_digit_arrays

Floats = NDArray[np.floating[Any]]


def mixture_samples(images: Floats, n_samples: int, *, components: int, seed: int = 0) -> Floats:
    """Digits drawn from scikit-learn's Gaussian mixture, fitted to some images; shaped as they are.

    It is fitted to all principal components: a few of them would lack details of real digits.

    Args:
        images: [image, ...].
        n_samples: digits to draw.
        components: normal distributions in the mixture, of any covariance.
        seed: seed of fit and draw.
    """
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture

    flat = images.reshape(len(images), -1).astype(np.float64)
    pca = PCA().fit(flat)
    mixture = GaussianMixture(components, reg_covar=1e-2, random_state=seed).fit(pca.transform(flat))
    drawn, _ = mixture.sample(n_samples)
    samples: Floats = np.clip(pca.inverse_transform(drawn), 0, INK).reshape(-1, *images.shape[1:])
    # The mixture gives one component's samples after the other's.
    return samples[np.random.default_rng(seed).permutation(len(samples))]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m examples.generative.reference", description=__doc__)
    parser.add_argument(
        "--served", type=Path, default=Path("experiments/generative/served.npz"), metavar="FILE"
    )
    path: Path = parser.parse_args().served
    if not path.is_file():
        parser.error(
            f"{path} is missing; query the served model first: python -m unitrain predict generative ..."
        )
    from sklearn.decomposition import PCA

    with np.load(path) as served:
        original, rebuilt = served["original"], served["reconstruction"]
        generated, code_size = served["generated"], served["encoded"].shape[1]
    train, labels = load_digit_arrays("train")
    flat, queried = train.reshape(len(train), -1), original.reshape(len(original), -1)
    pca = PCA(code_size).fit(flat)
    by_pca = pca.inverse_transform(pca.transform(queried)).reshape(original.shape)
    mean = train.mean(0)
    print(f"explained variance of {len(original)} held-out digits, codes of {code_size} values")
    print(f"  served {explained_variance(original, rebuilt, mean):.3f}")
    print(f"  PCA    {explained_variance(original, by_pca, mean):.3f}")

    features = DigitFeatures(train, labels)
    held_out = features(original)
    print(f"{'digits':24s}{'Fréchet distance':>18s}{'two-sample accuracy':>22s}")
    for name, digits in (
        ("training's own", train),
        ("served", generated),
        ("mixture of 10", mixture_samples(train, len(generated), components=10)),
        ("mixture of 30", mixture_samples(train, len(generated), components=30)),
    ):
        distance = frechet_distance(held_out, features(digits))
        print(f"{name:24s}{distance:18.2f}{two_sample_accuracy(original, digits):22.3f}")


if __name__ == "__main__":
    main()
