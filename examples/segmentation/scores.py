"""Agreement of a mask with the true one."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def foreground_iou(found: NDArray[Any], truth: NDArray[Any]) -> float:
    """Intersection over union of two bool masks of one shape; 1 where both are empty."""
    union = int(np.logical_or(found, truth).sum())
    return int(np.logical_and(found, truth).sum()) / union if union else 1.0
