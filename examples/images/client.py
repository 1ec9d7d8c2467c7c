"""Query the served classifier for the held-out digits, and print its accuracy and calibration."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from examples.images.held_out import Data, expected_calibration_error, load_part, log_loss, softmax
from unitrain.client import ClientIO, ModelInfo

_SHOWN = 8
_BINS = 10
_AREA, _LEAST_SHARE = 400, 0.02  # of a point that stands for all the digits, in points²


class HeldOutIO(ClientIO):
    """Queries the classes of the held-out digits, and prints accuracy and calibration.

    Args:
        model: description of the served model.
        data: kind of digits: `digits` (8 by 8 pixels) or `mnist` (28 by 28).
        plot: a picture of the calibration and of the mistakes; empty: none.

    Attributes:
        accuracy: share of the digits whose class is right.
        errors: expected calibration error before and after the temperature scaling.
    """

    def __init__(self, model: ModelInfo, *, data: Data = "digits", plot: str = "") -> None:
        super().__init__(model)
        self.images, self.labels = load_part(data)
        self.total = len(self.labels)
        self._plot = plot
        self._rows: list[int] = []
        self._probabilities: list[NDArray[np.float32]] = []
        self._logits: list[NDArray[np.float32]] = []
        self._versions: set[int] = set()
        self.accuracy = float("nan")
        self.errors = (float("nan"), float("nan"))

    def inputs(self) -> Iterator[dict[str, NDArray[np.uint8]]]:
        for image in self.images:
            yield {"image": image}

    def decode(self, index: int, outputs: dict[str, NDArray[np.float32]], version: int) -> None:
        self._rows.append(index)
        self._probabilities.append(outputs["probabilities"])
        self._logits.append(outputs["logits"])
        self._versions.add(version)

    def finalize(self) -> None:
        if not self._rows:
            print("no answers: nothing to compare")
            return
        labels = self.labels[self._rows]
        after, before = np.stack(self._probabilities), softmax(np.stack(self._logits))
        right = after.argmax(1) == labels
        self.accuracy = float(right.mean())
        self.errors = (
            expected_calibration_error(before, labels),
            expected_calibration_error(after, labels),
        )
        versions = ", ".join(map(str, sorted(self._versions)))
        print(
            f"accuracy {self.accuracy:.4f}: {right.sum()} of {len(labels)} held-out digits, version {versions}"
        )
        print(
            f"expected calibration error {self.errors[0]:.4f} before temperature scaling, {self.errors[1]:.4f} after"
        )
        print(f"log loss {log_loss(before, labels):.4f} before, {log_loss(after, labels):.4f} after")
        if self._plot:
            self._draw(Path(self._plot), before, after)
            print(f"plot {self._plot}")

    def _draw(self, path: Path, before: NDArray[np.float32], after: NDArray[np.float32]) -> None:
        # A figure of its own, without pyplot, is drawn by Agg: no display is needed.
        from matplotlib.figure import Figure

        labels = self.labels[self._rows]
        figure = Figure(figsize=(9, 4), layout="constrained")
        left, right = figure.subfigures(1, 2)
        axes = left.subplots()
        axes.plot([0, 1], [0, 1], color="0.6", linestyle=":")
        for probabilities, name, error in zip(
            (before, after), ("before", "after temperature scaling"), self.errors, strict=True
        ):
            confidence, true = probabilities.max(1), probabilities.argmax(1) == labels
            bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
            filled, counts = np.unique(bins, return_counts=True)
            said = [confidence[bins == b].mean() for b in filled]
            was = [true[bins == b].mean() for b in filled]
            area = _AREA * np.maximum(counts / len(labels), _LEAST_SHARE)
            axes.scatter(said, was, s=area, alpha=0.7, label=f"{name}, error {error:.4f}")
        axes.plot([], [], " ", label="areas: how many digits")
        axes.set(xlabel="confidence", ylabel="share that was right", xlim=(0, 1.02), ylim=(0, 1.02))
        axes.legend(loc="lower right", markerscale=0.5)
        given = after[np.arange(len(labels)), labels]
        for place, row in zip(right.subplots(2, _SHOWN // 2).ravel(), np.argsort(given), strict=False):
            place.imshow(self.images[self._rows[row], 0], cmap="gray_r")
            answer, share = after[row].argmax(), after[row].max()
            verdict = f"{answer}" if answer == labels[row] else f"{answer}, is {labels[row]}"
            place.set_title(f"{verdict}\n({share:.0%} sure)", fontsize=8)
            place.axis("off")
        right.suptitle(f"the hardest; {(after.argmax(1) != labels).sum()} of {len(labels)} are mistaken")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=80)
