"""Ready-made figures for a model's `summaries()`, each one line there.

Every function takes torch tensors or arrays, copies the little that it shows, and gives a `Drawing`: a recipe
that the training hands to another thread, where matplotlib is first imported and the figure is drawn.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unitrain.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Drawing",
    "calibration",
    "confusion_matrix",
    "reconstructions",
    "segmentation",
    "truth_against_prediction",
]

Array = NDArray[Any]

_MOST_NAMED = 12  # classes whose counts are written into a confusion matrix
_PROBABILITY_AXES, _IMAGE_AXES, _SIGNAL_AXES = 2, 3, 3
_MOST_POINTS = 5000
_COLOURS = "tab10"
_MOST_CHANNELS = 8


@dataclass(frozen=True)
class Drawing:
    """Recipe of a figure, drawn when it is called.

    Attributes:
        size_in: width and height in inches, at 100 pixels an inch.
        draw: function that draws into an empty figure.
    """

    size_in: tuple[float, float]
    draw: Callable[["Figure"], None]

    def __call__(self) -> "Figure":
        """Draw the figure. Any thread may call this, since it does not use pyplot."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=self.size_in, layout="constrained")
        self.draw(figure)
        return figure


def confusion_matrix(predicted: Any, target: Any, names: Sequence[str] | None = None) -> Drawing:
    """Draw the confusion matrix: rows are true classes, columns predicted ones, colours shares of the true class.

    Args:
        predicted: classes [row], or scores [row, class] of which the greatest counts.
        target: true classes [row].
        names: class names in order; None: class numbers.

    Raises:
        DataError: the numbers of predictions and targets differ.
    """
    guess, truth = _array(predicted), _array(target).reshape(-1).astype(np.int64)
    guess = guess.argmax(1) if guess.ndim == _PROBABILITY_AXES and guess.shape[1] > 1 else guess.reshape(-1)
    guess = guess.astype(np.int64)
    _same_length("confusion_matrix", guess, truth)
    classes = max([len(names or ()), *(int(a.max()) + 1 for a in (guess, truth) if a.size)], default=1) or 1
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (truth, guess), 1)
    shown = [*(names or ()), *map(str, range(len(names or ()), classes))]

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        figure.colorbar(image, ax=axes, label="share of the true class")
        if classes <= _MOST_NAMED:
            axes.set_xticks(range(classes), shown, rotation=45, ha="right")
            axes.set_yticks(range(classes), shown)
            for (row, column), count in np.ndenumerate(counts):
                ink = "white" if shares[row, column] > 1 / 2 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=ink)
        correct = counts.trace() / max(1, counts.sum())
        axes.set(xlabel="predicted", ylabel="true", title=f"{correct:.1%} of {counts.sum()} correct")

    return Drawing((6.4, 5.4), draw)


def calibration(probabilities: Any, target: Any, *, bins: int = 10) -> Drawing:
    """Draw accuracy over confidence, with the expected calibration error.

    Guo et al. 2017, https://arxiv.org/abs/1706.04599.

    Args:
        probabilities: values in [0, 1], [row, class] that add up to 1 or [row] for class 1.
        target: true classes [row].
        bins: number of bins of equal width.

    Raises:
        DataError: the numbers of predictions and targets differ.
    """
    chances, truth = _array(probabilities).astype(np.float64), _array(target).reshape(-1)
    if chances.ndim == _PROBABILITY_AXES and chances.shape[1] > 1:
        confidence, right = chances.max(1), chances.argmax(1) == truth
    else:
        confidence, right = chances.reshape(-1), truth == 1
    _same_length("calibration", confidence, truth)
    place = np.clip((confidence * bins).astype(np.int64), 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    filled = np.maximum(counts, 1)
    accuracy = np.bincount(place, right, bins) / filled
    said = np.bincount(place, confidence, bins) / filled
    error = float((counts * np.abs(accuracy - said)).sum() / max(1, counts.sum()))

    def draw(figure: "Figure") -> None:
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        edges = np.arange(bins) / bins
        axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="calibrated")
        axes.plot(said[counts > 0], accuracy[counts > 0], "o-", label="measured")
        axes.set(ylabel="share that was true", ylim=(0, 1.03), xlim=(0, 1))
        axes.set_title(f"expected calibration error {error:.3f}")
        axes.legend()
        below.bar(edges, counts, width=1 / bins, align="edge")
        below.set(xlabel="confidence", ylabel="samples")

    return Drawing((5.4, 5.4), draw)


def reconstructions(
    original: Any, reconstruction: Any, names: Sequence[Any] | None = None, *, most: int = 4
) -> Drawing:
    """Strips of some samples: signals grey under their reconstructions, images above theirs, of one scale both.

    A signal's first eight channels are drawn one below the other.

    Args:
        original: [row, channel, step] or [row, channel, height, width].
        reconstruction: the same shape as `original`.
        names: name or class of each sample.
        most: samples shown, the first ones.

    Raises:
        DataError: the two differ in shape.
    """
    before, after = _array(original[:most]), _array(reconstruction[:most])
    if before.shape != after.shape or before.ndim < _SIGNAL_AXES:
        raise DataError(
            f"reconstructions: expected [row, channel, ...] twice alike, got {list(before.shape)} and {list(after.shape)}"
        )
    titles = [str(name) for name in list(names)[: len(before)]] if names is not None else [""] * len(before)

    def signals(figure: "Figure") -> None:
        rows = figure.subplots(len(before), 1, sharex=True, squeeze=False)[:, 0]
        for axes, shown, rebuilt, title in zip(rows, before, after, titles, strict=True):
            kept = np.nan_to_num(np.stack([shown[:_MOST_CHANNELS], rebuilt[:_MOST_CHANNELS]]).astype(float))
            apart = float(np.ptp(kept, axis=2).max(initial=0)) or 1.0
            lines = kept - kept[:1].mean(2, keepdims=True) - apart * np.arange(kept.shape[1])[:, None]
            for channel in range(kept.shape[1]):
                axes.plot(lines[0, channel], color="0.6", linewidth=1.5)
                axes.plot(lines[1, channel], color=f"C{channel}", linewidth=1)
            axes.set_yticks([])
            axes.set_ylabel(title)
        rows[-1].set_xlabel("step (grey: original, coloured: reconstruction)")

    def images(figure: "Figure") -> None:
        grid = figure.subplots(2, len(before), squeeze=False)
        for column, title in enumerate(titles):
            for axes, image in zip(grid[:, column], (before[column], after[column]), strict=True):
                _show(axes, image, scale=before[column])
            grid[0, column].set_title(title)
        grid[0, 0].set_ylabel("original")
        grid[1, 0].set_ylabel("reconstruction")

    if before.ndim == _SIGNAL_AXES:
        return Drawing((6.4, max(2.0, 2.0 * len(before))), signals)
    return Drawing((max(4.0, 2.0 * len(before)), 4.4), images)


def truth_against_prediction(predicted: Any, target: Any, *, name: str = "", unit: str = "") -> Drawing:
    """Predictions over true values, with the line on which they would be equal, the RMSE and R².

    Args:
        predicted: any shape; each value is a point, with a maximum of 5,000 points.
        target: the same shape as `predicted`.
        name: name of the quantity.
        unit: unit of the quantity.

    Raises:
        DataError: the numbers of predictions and targets differ.
    """
    guess, truth = _array(predicted).reshape(-1), _array(target).reshape(-1)
    _same_length("truth_against_prediction", guess, truth)
    step = max(1, -(-len(guess) // _MOST_POINTS))
    guess, truth = guess[::step].astype(np.float64), truth[::step].astype(np.float64)
    finite = np.isfinite(guess) & np.isfinite(truth)
    guess, truth = guess[finite], truth[finite]

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        suffix = f" / {unit}" if unit else ""
        axes.set(xlabel=f"true {name}{suffix}", ylabel=f"predicted {name}{suffix}")
        if not len(guess):
            axes.set_title("no finite values")
            return
        both = np.concatenate([guess, truth])
        ends = [float(both.min()), float(both.max())]
        axes.plot(ends, ends, color="grey", linestyle=":")
        axes.scatter(truth, guess, s=8, alpha=0.5)
        residual = float(np.square(guess - truth).sum())
        total = float(np.square(truth - truth.mean()).sum())
        fit = f", R² {1 - residual / total:.4f}" if total else ""
        axes.set_title(f"RMSE {np.sqrt(residual / len(guess)):.4g}{fit}")

    return Drawing((5.4, 5.0), draw)


def segmentation(
    images: Any, predicted: Any, target: Any, names: Mapping[int, str] | None = None, *, most: int = 4
) -> Drawing:
    """Images with the true and the predicted classes laid over them; class 0 is left clear.

    Args:
        images: [row, channel, height, width].
        predicted: classes [row, height, width], or scores [row, class, height, width].
        target: true classes [row, height, width].
        names: class names by number, for the legend.
        most: images shown, the first ones.

    Raises:
        DataError: predictions and targets differ in shape.
    """
    shown, truth, guess = _array(images[:most]), _array(target[:most]), _array(predicted[:most])
    guess = guess.argmax(1) if guess.ndim > _IMAGE_AXES else guess
    truth = truth[:, 0] if truth.ndim > _IMAGE_AXES else truth
    if guess.shape != truth.shape:
        raise DataError(
            f"segmentation: expected a class a pixel, got {list(guess.shape)} predicted, {list(truth.shape)} true"
        )

    def draw(figure: "Figure") -> None:
        from matplotlib.patches import Patch

        grid = figure.subplots(3, len(shown), squeeze=False)
        highest = max(1, int(truth.max(initial=0)), int(guess.max(initial=0)))
        colours = _class_colours(highest + 1)
        for column, image in enumerate(shown):
            for row, classes in enumerate((None, truth[column], guess[column])):
                _show(grid[row, column], image)
                if classes is not None:
                    grid[row, column].imshow(colours[classes.astype(np.int64)], interpolation="nearest")
        for row, title in enumerate(("image", "true", "predicted")):
            grid[row, 0].set_ylabel(title)
        handles = [Patch(color=colours[n], label=name) for n, name in (names or {}).items() if n <= highest]
        if handles:
            figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))

    return Drawing((max(4.0, 2.2 * len(shown)), 6.6), draw)


def _class_colours(classes: int) -> Array:
    """RGBA in [0, 1], float64 [class, 4]: class 0 clear, the others half transparent."""
    from matplotlib import colormaps

    palette = colormaps[_COLOURS]
    colours = np.array([palette(n % palette.N) for n in range(classes)])
    colours[:, 3] = 1 / 2
    colours[0, 3] = 0
    return colours


def _show(axes: Any, image: Array, scale: Array | None = None) -> None:
    """An image [channel, height, width], from the least to the greatest value of it, or of `scale`."""
    finite, known = (np.nan_to_num(a.astype(np.float64)) for a in (image, image if scale is None else scale))
    low, span = (float(known.min()), float(np.ptp(known))) if known.size else (0.0, 0.0)
    pixels = np.moveaxis(((finite - low) / (span or 1.0)).clip(0, 1), 0, -1)
    colour = pixels.shape[-1] == 3  # noqa: PLR2004 - red, green, blue
    axes.imshow(pixels if colour else pixels[..., 0], cmap=None if colour else "gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])


def _array(values: Any) -> Array:
    """A copy in numpy: what is shown must not change before it is drawn."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
        return np.array(values.numpy())
    return np.array(values)


def _same_length(where: str, predicted: Array, target: Array) -> None:
    if len(predicted) != len(target):
        raise DataError(f"{where}: {len(predicted)} predictions for {len(target)} targets")
