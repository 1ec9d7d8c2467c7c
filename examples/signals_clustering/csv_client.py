"""The windows of a folder of CSV files streamed through the served model, and what came back."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from examples.signals_clustering.evaluation import Pca, explained_variance
from unitrain.client import ClientIO, ModelInfo
from unitrain.datamodules.csv_files import find_files
from unitrain.datamodules.csv_series import Columns, Windows, open_recording
from unitrain.serving.triton.wheel import cache_dir


class CsvSignalsIO(ClientIO):
    """Queries the codes of the last rows of each file, and prints the explained variance beside PCA's.

    Args:
        model: description of the served model; its input has the number of steps of a window.
        folder: folder of the files; `package:path` is a folder in an installed package.
        timestamp: the column of times.
        channels: the columns that are the signal; empty: all that are neither times nor labels.
        labels: columns that are no channels; written beside the codes.
        delimiter: between cells.
        timestamp_format: format of the times, as for the data module.
        max_gap: the longest time between two rows that is no gap, in multiples of the file's usual one.
        share: share of each file's rows, the last ones, to query: training did not see them.
        hop: rows from one queried window's begin to the next one's.
        output: an .npz file to write at the end: `code`, `start`, `stop` and the labels, a row a window;
            empty: none.
        plot: a picture of the codes and a window; empty: none.

    Attributes:
        explained: explained variance of the queried windows by the kind of reconstruction; empty before any answer.
    """

    def __init__(
        self,
        model: ModelInfo,
        *,
        folder: str,
        timestamp: str = "timestamp",
        channels: Sequence[str] = (),
        labels: Sequence[str] = (),
        delimiter: str = ",",
        timestamp_format: str | None = None,
        max_gap: float = 2.5,
        share: float = 0.2,
        hop: int = 16,
        output: str = "",
        plot: str = "",
    ) -> None:
        super().__init__(model)
        n_steps = model.signature.inputs[0].dims[-1]
        columns = Columns(timestamp, tuple(channels), tuple(labels), delimiter, timestamp_format)
        known, queried = [], []
        for path in find_files(folder):
            recording = open_recording(path, columns, cache_dir() / "csv_windows")
            border = len(recording.times_us) - round(share * len(recording.times_us))
            for begin, stop in recording.runs(max_gap):
                known.append((recording, begin, min(stop, border)))
                queried.append((recording, max(begin, border), stop))
        self._known, self._queried = Windows(known, n_steps, 4), Windows(queried, n_steps, hop)
        self._output, self._plot = output, plot
        self._rows: list[int] = []
        self._codes: list[NDArray[np.float32]] = []
        self._rebuilt: list[NDArray[np.float32]] = []
        self.explained: dict[str, float] = {}

    def inputs(self) -> Iterator[dict[str, NDArray[np.float32]]]:
        for window in self._queried:
            yield {"signals": window["signals"]}

    def decode(self, index: int, outputs: dict[str, NDArray[np.float32]], version: int) -> None:
        self._rows.append(index)
        self._codes.append(outputs["code"])
        self._rebuilt.append(outputs["reconstruction"])

    def finalize(self) -> None:
        if not self._rows:
            print("no answers: nothing to compare or write")
            return
        windows = [self._queried[row] for row in self._rows]
        means, stds = (moment[:, None] for moment in self._known.moments())
        z, rebuilt, known = (
            (np.stack(signals) - means) / stds
            for signals in (
                [window["signals"] for window in windows],
                self._rebuilt,
                [window["signals"] for window in self._known],
            )
        )
        size = len(self._codes[0])
        pca = Pca.fit(known, size)
        self.explained = {
            "served": explained_variance(z, rebuilt),
            f"PCA-{size}": explained_variance(z, pca.reconstruct(z)),
        }
        figures = ", ".join(f"{name} {value:.3f}" for name, value in self.explained.items())
        first, last = windows[0]["start"], windows[-1]["stop"]
        print(f"{len(windows)} windows from {first} to {last}; explained variance: {figures}")
        if self._output:
            others = {name: [w[name] for w in windows] for name in windows[0] if name != "signals"}
            np.savez(self._output, code=np.stack(self._codes), **others)
            print(f"written {self._output}")
        if self._plot:
            self._draw(z[len(z) // 2], rebuilt[len(z) // 2], windows[len(z) // 2]["start"])
            print(f"plot {self._plot}")

    def _draw(self, signal: NDArray[np.float64], rebuilt: NDArray[np.float64], start: str) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 4), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        for channel in range(min(3, len(signal))):
            left.plot(signal[channel], color=f"C{channel}", alpha=0.35)
            left.plot(rebuilt[channel], color=f"C{channel}")
        left.set(
            title=f"a window (pale) and its served reconstruction, {start}",
            xlabel="step",
            ylabel="standardised",
        )
        codes = np.stack(self._codes)
        points = Pca.fit(codes, 2).encode(codes)
        right.scatter(points[:, 0], points[:, 1], c=np.arange(len(points)), s=14)
        right.set(
            title="served codes, from first to last", xlabel="first component", ylabel="second component"
        )
        Path(self._plot).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(self._plot, dpi=80)
