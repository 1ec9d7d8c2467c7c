"""The figures that the demonstration prints."""

import numpy as np
import pytest

from examples.signals_clustering.evaluation import Pca, explained_variance, nearest_neighbour_accuracy


def test_explained_variance_of_a_perfect_and_a_constant_reconstruction() -> None:
    """1 for the signals themselves, 0 for their mean."""
    signals = np.random.default_rng(0).standard_normal((5, 2, 7))
    assert explained_variance(signals, signals) == 1
    assert explained_variance(signals, np.full_like(signals, signals.mean())) == pytest.approx(0)


def test_pca_reconstructs_what_lies_in_its_components() -> None:
    """Signals of three dimensions come back from three values, and not from two."""
    generator = np.random.default_rng(0)
    samples = generator.standard_normal((30, 3)) @ generator.standard_normal((3, 12)) + 4
    samples = samples.reshape(30, 2, 6)
    assert np.allclose(Pca.fit(samples, 3).reconstruct(samples), samples)
    assert not np.allclose(Pca.fit(samples, 2).reconstruct(samples), samples)
    assert Pca.fit(samples, 2).encode(samples).shape == (30, 2)


def test_pca_is_scikit_learns() -> None:
    """The same reconstructions of signals that it was not fitted on."""
    from sklearn.decomposition import PCA

    known, asked = np.random.default_rng(0).standard_normal((2, 20, 9))
    theirs = PCA(4).fit(known)
    expected = theirs.inverse_transform(theirs.transform(asked))
    assert np.allclose(Pca.fit(known, 4).reconstruct(asked), expected)


def test_nearest_neighbour_takes_the_class_of_the_nearest_code() -> None:
    """Two of three asked codes lie nearest to one of their own class."""
    known, labels = np.array([[0.0, 0.0], [10.0, 0.0]]), np.array([0, 1])
    asked, asked_labels = np.array([[1.0, 0.0], [9.0, 0.0], [4.0, 0.0]]), np.array([0, 1, 1])
    assert nearest_neighbour_accuracy(known, labels, asked, asked_labels) == pytest.approx(2 / 3)
