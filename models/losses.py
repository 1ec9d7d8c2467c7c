"""Losses of segmentation that torch lacks, and a table to choose them by name."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


def dice_loss(logits: Tensor, target: Tensor, *, smooth: float = 1.0) -> Tensor:
    """1 - the soft Dice coefficient, the mean over classes; a scalar in [0, 1].

    Milletari et al. 2016, https://arxiv.org/abs/1606.04797. A class's coefficient is that of all pixels of
    the batch together: its absence from a single patch means little for that patch.

    Args:
        logits: float [batch, class, ...].
        target: int64 [batch, ...], each a class.
        smooth: added to numerator and denominator, in pixels, so that a class that is not there costs nothing.
    """
    probabilities = logits.softmax(1)
    truth = nn.functional.one_hot(target, logits.shape[1]).movedim(-1, 1).to(probabilities.dtype)
    axes = (0, *range(2, logits.dim()))
    overlap = (probabilities * truth).sum(axes)
    total = probabilities.sum(axes) + truth.sum(axes)
    return 1 - ((2 * overlap + smooth) / (total + smooth)).mean()


def focal_loss(logits: Tensor, target: Tensor, *, gamma: float = 2.0) -> Tensor:
    """The cross entropy in which a pixel counts the less, the surer it is; the mean over pixels.

    Lin et al. 2017, https://arxiv.org/abs/1708.02002; with gamma 0 it is the cross entropy.

    Args:
        logits: float [batch, class, ...].
        target: int64 [batch, ...], each a class.
        gamma: exponent of the weight (1 - p)^gamma of a pixel whose true class is given the probability p.
    """
    cross_entropy = nn.functional.cross_entropy(logits, target, reduction="none")
    return ((1 - (-cross_entropy).exp()) ** gamma * cross_entropy).mean()


LOSSES: Mapping[str, Loss] = {
    "cross_entropy": nn.functional.cross_entropy,
    "dice": dice_loss,
    "focal": focal_loss,
}
"""By the names that settings use; each of logits [batch, class, ...] and classes int64 [batch, ...]."""
