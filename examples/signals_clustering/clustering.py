"""The served codes clustered without their classes, beside PCA and k-means; `--help` lists the options."""

import argparse
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from examples.signals_clustering.basic_motions import CLASS_NAMES, load_basic_motions
from examples.signals_clustering.evaluation import Pca
from unitrain import Client

N_STARTS = 50
"""Of k-means; the clustering of least squared distance is taken."""


def purity(classes: NDArray[np.int64], clusters: NDArray[np.int64]) -> float:
    """Share of the samples whose class is their cluster's most frequent one."""
    most = [np.bincount(classes[clusters == cluster]).max() for cluster in np.unique(clusters)]
    return float(sum(most) / len(classes))


def cluster(codes: NDArray[np.floating], n_clusters: int, seed: int = 0) -> NDArray[np.int64]:
    """The cluster of each code, [sample], by scikit-learn's k-means."""
    from sklearn.cluster import KMeans

    clusters: NDArray[np.int64] = KMeans(n_clusters, n_init=N_STARTS, random_state=seed).fit_predict(codes)
    return clusters.astype(np.int64)


def main(argv: Sequence[str] | None = None) -> int:
    """Print how well four clusters of codes agree with the four classes."""
    parser = argparse.ArgumentParser(description="Cluster the served codes, beside PCA and k-means.")
    parser.add_argument("--url", default="127.0.0.1:8001", help="the server's, host:port")
    parser.add_argument("--model", default="signals_clustering", help="its name on the server")
    options = parser.parse_args(argv)
    from sklearn.metrics import adjusted_rand_score

    known, held_out = load_basic_motions("TRAIN"), load_basic_motions("TEST")
    with Client(options.url) as client:
        answers = [client.predict(options.model, signals=part.signals) for part in (known, held_out)]
    codes = [answer.outputs["code"] for answer in answers]
    means, stds = (f(known.signals, axis=(0, 2), keepdims=True) for f in (np.mean, np.std))
    standardised = [(part.signals - means) / stds for part in (known, held_out)]
    pca = Pca.fit(standardised[0], codes[0].shape[1])
    size = codes[0].shape[1]
    by_name = {
        f"served codes, version {answers[1].version}": codes,
        f"PCA-{size}": [pca.encode(signals) for signals in standardised],
        "signals as they are": [signals.reshape(len(signals), -1) for signals in standardised],
    }
    print(f"{'k-means of':28}  {'held-out 40':>18}  {'all 80':>18}")
    print(f"{'':28}  {'ARI':>8}  {'purity':>8}  {'ARI':>8}  {'purity':>8}")
    for name, (of_known, of_held_out) in by_name.items():
        figures: list[float] = []
        for samples, classes in (
            (of_held_out, held_out.labels),
            (np.concatenate([of_known, of_held_out]), np.concatenate([known.labels, held_out.labels])),
        ):
            clusters = cluster(samples, len(CLASS_NAMES))
            figures += [float(adjusted_rand_score(classes, clusters)), purity(classes, clusters)]
        print(f"{name:28}  " + "  ".join(f"{figure:8.3f}" for figure in figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
