"""The served codes' quality, beside that of PCA of the same code size."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from examples.signals_clustering.client import SignalsIO
from examples.signals_clustering.evaluation import Pca, explained_variance, nearest_neighbour_accuracy


@dataclass(frozen=True)
class Row:
    """One figure by what made the codes: the served model, PCA fitted on plain signals, PCA on augmented ones."""

    served: float
    plain: float
    augmented: float


@dataclass(frozen=True)
class Scores:
    """All figures; of explained variance, and of a nearest-neighbour classifier on the codes."""

    validation: Row
    held_out: Row
    accuracy: Row


def score_codes(known: SignalsIO, held_out: SignalsIO, validation: float) -> Scores:
    """The scores of a served model's answers, all of signals standardised by channel.

    For the held-out signals PCA may see all 40 training signals, the validation ones among them: more
    than the model was trained on.

    Args:
        known: the training signals with the model's answers.
        held_out: held-out signals with the model's answers.
        validation: the model's explained variance of the validation signals.
    """
    from examples.signals_clustering.data import BasicMotions
    from unitrain.loaders import ArrayLoader

    data = BasicMotions()
    means, stds = np.array(data.channel_means)[:, None], np.array(data.channel_stds)[:, None]

    def read(loader: ArrayLoader) -> NDArray[np.float64]:
        return np.concatenate([(batch["signals"].numpy() - means) / stds for batch in loader])

    def augmented(signals: NDArray[np.float32]) -> NDArray[np.float64]:
        return read(
            ArrayLoader(
                {"signals": signals}, batch_size=64, repeats=data.repeats, shuffle=True, seed=0,
                transform=data.augmentation,
            )
        )  # fmt: skip

    known_codes, codes = np.stack(known.codes), np.stack(held_out.codes)
    size = codes.shape[1]
    known_signals, queried = ((io.signals - means) / stds for io in (known, held_out))
    checked = read(data.val_dataloader())
    first, second = (
        Pca.fit(samples, size) for samples in (known_signals[data.train_rows], augmented(data.train.signals))
    )
    plain, mixed = (Pca.fit(samples, size) for samples in (known_signals, augmented(known.signals)))

    def accuracy(of_known: NDArray[np.floating], of_queried: NDArray[np.floating]) -> float:
        return nearest_neighbour_accuracy(of_known, known.labels, of_queried, held_out.labels)

    return Scores(
        validation=Row(
            validation,
            explained_variance(checked, first.reconstruct(checked)),
            explained_variance(checked, second.reconstruct(checked)),
        ),
        held_out=Row(
            explained_variance(queried, (np.stack(held_out.reconstructions) - means) / stds),
            explained_variance(queried, plain.reconstruct(queried)),
            explained_variance(queried, mixed.reconstruct(queried)),
        ),
        accuracy=Row(
            accuracy(known_codes, codes),
            accuracy(plain.encode(known_signals), plain.encode(queried)),
            accuracy(mixed.encode(known_signals), mixed.encode(queried)),
        ),
    )
