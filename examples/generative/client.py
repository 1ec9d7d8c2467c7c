"""Held-out digits encoded and rebuilt, and digits made of drawn codes, all by one stream of requests."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unitrain.client import ClientIO, ModelInfo
from unitrain.datamodules.digit_arrays import INK, load_digit_arrays

Floats = NDArray[np.float32]


class DigitsIO(ClientIO):
    """Queries the code and the reconstruction of each held-out digit, and for a new digit with each request.

    The last requests' codes lead from one drawn code to another in even steps.

    Args:
        model: description of the served model.
        n_samples: new digits; at least as many as are held out.
        seed: seed of the codes.
        n_steps: steps of the path between two codes; 0: no path.
        output: an .npz file for `original`, `reconstruction`, `encoded`, `label` and `generated`; empty: none.
        plot: the picture's path; empty: none. Both are relative to the working folder.

    Attributes:
        explained_variance: of the held-out digits by their reconstructions, about the training's mean digit;
            NaN before any answer.
    """

    def __init__(
        self,
        model: ModelInfo,
        *,
        n_samples: int = 2000,
        seed: int = 0,
        n_steps: int = 20,
        output: str = "experiments/generative/served.npz",
        plot: str = "experiments/generative/served.png",
    ) -> None:
        super().__init__(model)
        self._images, self._labels = load_digit_arrays("held_out")
        (code,) = (spec for spec in model.signature.inputs if spec.name == "code")
        drawn = np.random.default_rng(seed).standard_normal((max(n_samples, len(self._images)), code.dims[0]))
        part = np.linspace(0, 1, n_steps)[:, None]
        way = drawn[0] * (1 - part) + drawn[1] * part
        self._codes = np.concatenate([drawn, way]).astype(np.float32)
        self._n_drawn = len(drawn)
        self._output, self._plot = Path(output) if output else None, Path(plot) if plot else None
        self._encoded: list[Floats] = []
        self._rebuilt: list[Floats] = []
        self._made: list[Floats] = []
        self._versions: set[int] = set()
        self.explained_variance = float("nan")

    def inputs(self) -> Iterator[dict[str, Floats]]:
        for index, code in enumerate(self._codes):
            yield {"image": self._images[index % len(self._images)], "code": code}

    def decode(self, index: int, outputs: dict[str, Floats], version: int) -> None:
        if index < len(self._images):
            self._encoded.append(outputs["encoded"])
            self._rebuilt.append(outputs["reconstruction"])
        self._made.append(outputs["generated"])
        self._versions.add(version)

    def finalize(self) -> None:
        if len(self._made) < len(self._codes):
            print(f"{len(self._made)} of {len(self._codes)} answers: nothing is drawn or written")
            return
        rebuilt, made = np.stack(self._rebuilt), np.stack(self._made)
        mean = load_digit_arrays("train").images.mean(0)
        residual, total = np.square(self._images - rebuilt).sum(), np.square(self._images - mean).sum()
        self.explained_variance = float(1 - residual / total)
        versions = ", ".join(map(str, sorted(self._versions)))
        print(f"{self._n_drawn} digits made, {len(rebuilt)} held-out ones rebuilt, version {versions}")
        print(f"explained variance of the reconstructions {self.explained_variance:.3f}")
        if self._output is not None:
            self._output.parent.mkdir(parents=True, exist_ok=True)
            np.savez(
                self._output,
                original=self._images,
                reconstruction=rebuilt,
                encoded=np.stack(self._encoded),
                label=self._labels,
                generated=made[: self._n_drawn],
            )
            print(f"written {self._output}")
        if self._plot is not None:
            self._plot.parent.mkdir(parents=True, exist_ok=True)
            self._draw(rebuilt, made, self._plot)
            print(f"plot {self._plot}")

    def _draw(self, rebuilt: Floats, made: Floats, path: Path) -> None:
        from matplotlib.figure import Figure

        way = made[self._n_drawn :]
        rows = [
            (
                "held-out digits above their reconstructions",
                np.concatenate([self._images[:20], rebuilt[:20]]),
                20,
            ),
            ("made of drawn codes", made[:60], 20),
            ("from one drawn code to another", way, len(way)),
        ]
        rows = [row for row in rows if len(row[1])]
        figure = Figure(figsize=(9, 4.2), layout="constrained")
        panels = figure.subplots(len(rows), 1, height_ratios=[len(images) / n for _, images, n in rows])
        for axes, (title, images, columns) in zip(np.atleast_1d(panels), rows, strict=True):
            axes.imshow(_mosaic(images[:, 0], columns), cmap="gray_r", vmin=0, vmax=INK)
            axes.set_title(title, fontsize=9)
            axes.set_axis_off()
        figure.savefig(path, dpi=100)


def _mosaic(images: Floats, columns: int) -> Floats:
    """Images [image, row, column] side by side, with a blank pixel around each; one array [row, column]."""
    framed = np.pad(images, ((0, -len(images) % columns), (1, 1), (1, 1)))
    n, height, width = framed.shape
    grid = framed.reshape(n // columns, columns, height, width)
    return grid.transpose(0, 2, 1, 3).reshape(-1, columns * width)
