"""docs/images/figures.png: the ready-made figures, of made-up numbers.

python benchmarks/figures_gallery.py
"""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from unitrain import figures

NAMES = ["Standing", "Running", "Walking", "Badminton"]
CELL_PX, RADIUS_PX = (480, 480), 10


def main() -> None:
    """Draw them, three in a line."""
    rng = np.random.default_rng(0)
    target = rng.integers(0, 4, 400)
    scores = 1.5 * np.eye(4)[target] + rng.normal(size=(400, 4))
    chances = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    steps = np.arange(100)
    signals = np.sin(steps * rng.uniform(0.05, 0.4, (4, 4, 1)) + rng.uniform(0, 6, (4, 4, 1)))
    signals += 0.1 * rng.normal(size=signals.shape)
    smooth = np.apply_along_axis(np.convolve, 2, signals, np.full(9, 1 / 9), "same")
    y, x = np.mgrid[:64, :64]
    places = rng.uniform(12, 52, (3, 2, 2))
    classes = (
        np.array([sum((y - a) ** 2 + (x - b) ** 2 < RADIUS_PX**2 for a, b in place) for place in places]) > 0
    )
    images = classes[:, None] * 0.5 + 0.05 * rng.normal(size=(3, 1, 64, 64))
    blurred = (images + np.roll(images, 1, 2) + np.roll(images, 1, 3)) / 3
    truth = rng.normal(20, 5, 1000)
    drawings = [
        figures.confusion_matrix(scores, target, NAMES),
        figures.calibration(chances, target),
        figures.truth_against_prediction(
            truth + rng.normal(0, 2, 1000), truth, name="consumption", unit="mpg"
        ),
        figures.reconstructions(signals, smooth, NAMES),
        figures.reconstructions(images, blurred, ["first", "second", "third"]),
        figures.segmentation(images, np.roll(classes, 2, 2).astype(int), classes.astype(int), {1: "nucleus"}),
    ]
    sheet = Image.new("RGB", (3 * CELL_PX[0], 2 * CELL_PX[1]), "white")
    for place, drawing in enumerate(drawings):
        canvas = FigureCanvasAgg(drawing())
        canvas.draw()
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
        image.thumbnail((CELL_PX[0] - 16, CELL_PX[1] - 16), Image.Resampling.LANCZOS)
        column, row = place % 3, place // 3
        left, top = (size - used for size, used in zip(CELL_PX, image.size, strict=True))
        sheet.paste(image, (column * CELL_PX[0] + left // 2, row * CELL_PX[1] + top // 2))
    sheet.quantize(128).save(Path(__file__).parents[1] / "docs" / "images" / "figures.png", optimize=True)


if __name__ == "__main__":
    main()
