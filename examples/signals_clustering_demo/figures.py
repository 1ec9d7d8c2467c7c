"""The demonstration's picture: signals with their served reconstructions, and the codes by class."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.signals_clustering.basic_motions import CLASS_NAMES, N_CHANNELS
from examples.signals_clustering.client import SignalsIO
from examples.signals_clustering.evaluation import Pca


def draw_overview(path: Path, held_out: SignalsIO, known: SignalsIO, title: str) -> None:
    """Write the picture.

    Args:
        path: path of the .png file.
        held_out: the held-out signals with the model's answers.
        known: training signals with the model's answers.
        title: title of the figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8), layout="constrained")
    figure.suptitle(title)
    grid = figure.add_gridspec(len(CLASS_NAMES), 2, width_ratios=(3, 2))
    labels = held_out.labels[held_out.rows]
    panels = [figure.add_subplot(grid[row, 0]) for row in range(len(CLASS_NAMES))]
    for label, axes in enumerate(panels):
        place = int(np.flatnonzero(labels == label)[0])
        signal, reconstruction = held_out.signals[held_out.rows[place]], held_out.reconstructions[place]
        for channel in range(N_CHANNELS):
            axes.plot(signal[channel], color=f"C{channel}", alpha=0.35)
            axes.plot(reconstruction[channel], color=f"C{channel}")
        axes.set_ylabel(CLASS_NAMES[label])
    panels[0].set_title("held-out signals (pale) and their served reconstructions, six channels")
    panels[-1].set_xlabel("step of 0.1 s")

    axes = figure.add_subplot(grid[:, 1])
    known_codes, codes = np.stack(known.codes), np.stack(held_out.codes)
    plane = Pca.fit(known_codes, 2)
    _scatter(axes, plane.encode(known_codes), known.labels[known.rows], facecolors="none", alpha=0.5)
    _scatter(axes, plane.encode(codes), labels, names=CLASS_NAMES)
    axes.set(
        title="served codes in their first two principal components\n(filled: held-out, hollow: training)",
        xlabel="first component",
        ylabel="second component",
    )
    axes.legend()
    figure.savefig(path, dpi=110)


def _scatter(
    axes: Any,
    points: NDArray[Any],
    labels: NDArray[np.int64],
    names: tuple[str, ...] | None = None,
    **style: Any,
) -> None:
    for label in range(len(CLASS_NAMES)):
        chosen = points[labels == label]
        colours = {"facecolors": f"C{label}", "edgecolors": f"C{label}", **style}
        axes.scatter(chosen[:, 0], chosen[:, 1], label=names[label] if names else None, **colours)
