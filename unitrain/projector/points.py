"""Points as the Projector reads them: raw little-endian float32, one row a point.

TensorBoard's plugin reads every tensor as text first and takes it for binary only after a
UnicodeDecodeError (`_read_tensor_tsv_file` and `_augment_configs_with_checkpoint_info` in
tensorboard/plugins/projector/projector_plugin.py). Bytes whose beginning decodes, such as those of a code
that is all zeros, make it answer 500 for *every* run.
"""

import codecs
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from unitrain.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]

_NARROWEST = 3  # the page draws three axes; with fewer it computes NaN and shows nothing
_HEAD_BYTES = 8192  # what Python's text files decode at a time
_LINE_END = re.compile(rb"[\r\n]")  # with TensorFlow installed, the plugin decodes a line at a time
_CONTINUATION, _LAST_INVALID_LEAD = 0x80, 0xC1


def flat_points(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Each tensor as float32 [rows, values], values beyond float32's range as infinities.

    Raises:
        DataError: a tensor is not numeric, is empty, or has another number of rows than the first.
    """
    points: dict[str, Array] = {}
    for name, given in tensors.items():
        array = np.asarray(given)
        if array.dtype.kind not in "biuf":
            raise DataError(f"embeddings: tensor {name} has dtype {array.dtype}, expected real numbers")
        if array.ndim == 0 or array.size == 0:
            raise DataError(
                f"embeddings: tensor {name} has shape {list(array.shape)}, expected at least one row and one value"
            )
        rows = len(next(iter(points.values()), array))
        if len(array) != rows:
            raise DataError(f"embeddings: tensor {name} has {len(array)} rows, the others have {rows}")
        with np.errstate(over="ignore"):
            points[name] = array.reshape(rows, -1).astype("<f4", copy=False)
    return points


def finite_rows(points: Mapping[str, Array]) -> tuple[list[str], Array]:
    """The tensors that have a finite row, and a mask [rows] of those finite in all of them.

    A tensor without any (a part of the model that has died) would take all the others with it.
    """
    masks = {name: np.isfinite(array).all(axis=1) for name, array in points.items()}
    alive = [name for name, mask in masks.items() if mask.any()]
    if not alive:
        return [], np.zeros(len(next(iter(points.values()))), dtype=bool)
    return alive, np.logical_and.reduce([masks[name] for name in alive])


def binary_points(points: Array) -> Array:
    """The same points, C-contiguous and at least three values wide, whose bytes can't be taken for text.

    Where they could, the very first value changes: 0.0 becomes -0.0, any other moves by at most 128 units
    in its last place (1.5e-5 of it).
    """
    rows, width = points.shape
    if width < _NARROWEST:
        points = np.concatenate([points, np.zeros((rows, _NARROWEST - width), "<f4")], axis=1)
    points = np.ascontiguousarray(points, dtype="<f4")
    head = _LINE_END.split(points.reshape(-1)[: _HEAD_BYTES // 4].tobytes(), maxsplit=1)[0]
    if _decodes(head):
        points = points.copy()
        _spoil(points)
    return points


def _decodes(data: bytes) -> bool:
    try:
        # A character cut at the end is no reason to trust that the next byte is wrong.
        codecs.getincrementaldecoder("utf-8")().decode(data, final=False)
    except UnicodeDecodeError:
        return False
    return True


def _spoil(points: Array) -> None:
    first = points.reshape(-1)[:1]
    if first[0] == 0:
        first[0] = -0.0
        return
    # No UTF-8 text begins with a byte of 0x80 to 0xC1.
    low = first.view(np.uint8)
    low[0] = min(max(int(low[0]), _CONTINUATION), _LAST_INVALID_LEAD)
