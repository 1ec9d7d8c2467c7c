"""The ready-made figures say what is in the numbers, without pyplot and without torch."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from time_limits import LIMIT_S

from unitrain import figures
from unitrain.errors import DataError

RANDOM = np.random.default_rng(0)


def drawn(drawing: figures.Drawing) -> Any:
    """The figure, rendered as a training does it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = drawing()
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    assert np.ptp(np.asarray(canvas.buffer_rgba())[..., :3]) > 100
    return figure


def test_a_confusion_matrix_counts_and_names_classes() -> None:
    """Rows are true, columns predicted; scores count by their greatest."""
    scores = np.eye(3)[[0, 1, 1, 2]]
    figure = drawn(figures.confusion_matrix(scores, [0, 1, 2, 2], ["ä", "b"]))
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["1", "0", "0", "0", "1", "0", "0", "1", "1"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["ä", "b", "2"]
    assert axes.get_title() == "75.0% of 4 correct"


def test_calibration_of_honest_chances_has_little_error() -> None:
    """And that of overconfident ones a large one."""
    chances = RANDOM.uniform(size=20_000)
    honest = drawn(figures.calibration(chances, RANDOM.uniform(size=20_000) < chances))
    assert float(honest.axes[0].get_title().split()[-1]) < 0.02
    sure = drawn(figures.calibration(np.tile([0.99, 0.01], (100, 1)), np.arange(100) % 2))
    assert sure.axes[0].get_title() == "expected calibration error 0.490"


@pytest.mark.parametrize("shape", [(9, 6, 50), (9, 1, 8, 8), (1, 3, 8, 8)])
def test_reconstructions_show_signals_and_images(shape: tuple[int, ...]) -> None:
    """Four of them at most."""
    figure = drawn(figures.reconstructions(RANDOM.normal(size=shape), RANDOM.normal(size=shape), range(9)))
    assert len(figure.axes) == (4 if len(shape) == 3 else 2 * min(4, shape[0]))


def test_a_pale_reconstruction_looks_pale() -> None:
    """It is drawn by its original's scale, not by its own."""
    image = RANDOM.uniform(size=(1, 1, 8, 8))
    figure = drawn(figures.reconstructions(image, image / 2))
    before, after = (axes.images[0].get_array() for axes in figure.axes)
    assert np.ptp(before) == pytest.approx(1)
    assert np.ptp(after) == pytest.approx(0.5, abs=0.01)


def test_truth_against_prediction_tells_error_and_fit() -> None:
    """Over finite values alone; none and one are drawn, too."""
    truth = np.arange(10_000.0)
    figure = drawn(figures.truth_against_prediction(truth + 1, np.where(truth == 3, np.nan, truth), unit="m"))
    assert figure.axes[0].get_title() == "RMSE 1, R² 1.0000"
    for rows in (0, 1):
        drawn(figures.truth_against_prediction(truth[:rows], truth[:rows]))


def test_a_segmentation_lies_over_its_images() -> None:
    """From scores, with a legend."""
    images, target = RANDOM.normal(size=(2, 3, 8, 8)), RANDOM.integers(0, 3, (2, 8, 8))
    figure = drawn(
        figures.segmentation(images, np.eye(3)[target].transpose(0, 3, 1, 2), target, {1: "nucleus"})
    )
    assert len(figure.axes) == 6
    assert figure.legends[0].get_texts()[0].get_text() == "nucleus"


def test_what_does_not_fit_together_is_refused() -> None:
    """In one sentence."""
    with pytest.raises(DataError, match="3 predictions for 2 targets"):
        figures.confusion_matrix([0, 1, 2], [0, 1])
    with pytest.raises(DataError, match="reconstructions"):
        figures.reconstructions(np.ones((2, 3, 4)), np.ones((2, 3, 5)))


def test_neither_importing_nor_drawing_brings_pyplot_or_torch_in() -> None:
    """Pyplot belongs to the main thread, and the import costs nothing before anything is drawn."""
    program = (
        "import sys; from unitrain import figures; assert 'matplotlib' not in sys.modules;"
        "figures.confusion_matrix([0, 1], [0, 1])();"
        "assert not {'matplotlib.pyplot', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=LIMIT_S)
