"""Comparison of model outputs: tolerances, and the difference of two sets of outputs.

This file imports nothing of unitrain: a copy of it runs beside the backend, inside Triton's Python stub.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray[Any, Any]]

_COUNTED = "biuOSU"
"""Kinds of dtypes whose values are compared exactly: booleans, integers and strings."""
_AT_ONCE = 1 << 20
"""Number of values compared at a time, which bounds the memory."""


@dataclass(frozen=True)
class Tolerance:
    """Allowed difference of an output: |onnx - torch| <= absolute + relative * |torch|.

    Attributes:
        absolute: absolute tolerance of floating-point outputs.
        relative: relative tolerance of floating-point outputs.
        by_dtype: other (absolute, relative) pairs for some dtypes, by Triton's names.
        integer_share: share of the values of an integer, boolean or string output that may differ.

    >>> Tolerance().of(np.dtype(np.float32))
    (0.0001, 0.001)
    """

    absolute: float = 1e-4
    relative: float = 1e-3
    by_dtype: Mapping[str, Sequence[float]] = field(default_factory=lambda: {"FP16": (1e-2, 1e-2)})
    integer_share: float = 1e-3

    @classmethod
    def of_manifest(cls, manifest: Any) -> "Tolerance":
        """Return the tolerances of a version's manifest; the defaults if it has none."""
        return cls.from_json(manifest.tolerance if manifest else None)

    @classmethod
    def from_json(cls, data: Any) -> "Tolerance":
        """Parse a manifest's `tolerance` field; the defaults if it is empty.

        Raises:
            ValueError: its values are not finite numbers of at least 0.
        """
        if not data:
            return cls()
        try:
            found = cls(**data)
            numbers = [found.absolute, found.relative, found.integer_share]
            for pair in found.by_dtype.values():
                absolute, relative = pair
                numbers += [absolute, relative]
            if all(float(number) >= 0 and math.isfinite(number) for number in numbers):
                return found
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"its tolerance can't be read: {error}") from error
        raise ValueError("its tolerance has a number that is negative or not finite")

    def of(self, dtype: np.dtype[Any]) -> tuple[float, float]:
        """Return the absolute and the relative tolerance of a dtype; both 0 for a dtype compared exactly."""
        if dtype.kind in _COUNTED:
            return 0.0, 0.0
        absolute, relative = self.by_dtype.get(f"FP{8 * dtype.itemsize}", (self.absolute, self.relative))
        return float(absolute), float(relative)


@dataclass(frozen=True)
class Difference:
    """Difference of two sets of outputs.

    Attributes:
        by_output: largest absolute and relative difference (`max_abs`, `max_rel`) by output.
        failure: message on the first failure; None if all outputs are within the tolerances.
    """

    by_output: dict[str, dict[str, float]]
    failure: str | None


def compare(
    expected: Arrays, got: Arrays, tolerance: Tolerance, *, sides: tuple[str, str] = ("torch", "onnxruntime")
) -> Difference:
    """Compare two sets of outputs; NaN equals NaN, and a small share of integers and strings may differ.

    Args:
        expected: arrays by output name.
        got: arrays by output name, in the same order.
        tolerance: allowed difference.
        sides: names of the two sets in the failure.
    """
    if list(expected) != list(got):
        return Difference({}, f"the outputs are named {', '.join(got)}, expected {', '.join(expected)}")
    by_output: dict[str, dict[str, float]] = {}
    failure = None
    for name, want in expected.items():
        have = got[name]
        if want.shape != have.shape or _type(want) != _type(have):
            failure = failure or (
                f"{name} is {_type(have)}{list(have.shape)}, expected {_type(want)}{list(want.shape)}"
            )
            continue
        figures, wrong, worst = _differences(want, have, tolerance)
        by_output[name] = figures
        # An argmax or a rounding of nearly equal values may differ now and then.
        share = tolerance.integer_share if want.dtype.kind in _COUNTED else 0.0
        if wrong > share * want.size and failure is None:
            absolute, relative = tolerance.of(want.dtype)
            where = np.unravel_index(worst, want.shape)
            allowed = (
                f"{absolute:g} + {relative:g} of the value" if not share else f"in {share:g} of the values"
            )
            failure = (
                f"{name}{list(map(int, where))} is {have[where]!s} in {sides[1]} and {want[where]!s} in {sides[0]}"
                f" (allowed: {allowed})"
            )
    return Difference(by_output, failure)


def golden_difference(outputs: Arrays, answers: Arrays, tolerance: Tolerance, where: str) -> Difference:
    """Compare a version's answers with its golden outputs; further outputs are ignored.

    Args:
        outputs: golden outputs by name.
        answers: answers to the golden inputs by name.
        tolerance: tolerance of the version's manifest.
        where: name of what answered, in the failure.
    """
    given = {name: answers[name] for name in outputs if name in answers}
    return compare(outputs, given, tolerance, sides=("the golden samples", where))


def _type(array: np.ndarray[Any, Any]) -> str:
    return "strings" if array.dtype.kind in "OSU" else str(array.dtype)


def _differences(
    want: np.ndarray[Any, Any], have: np.ndarray[Any, Any], tolerance: Tolerance
) -> tuple[dict[str, float], int, int]:
    """Return the largest differences, the number of values beyond the tolerance, and the worst value's index."""
    absolute, relative = tolerance.of(want.dtype)
    exact = want.dtype.kind in _COUNTED
    strings = want.dtype.kind in "OSU"
    figures = {"max_abs": 0.0, "max_rel": 0.0}
    wrong_values, worst, worst_off = 0, 0, -1.0
    a_flat, b_flat = want.reshape(-1), have.reshape(-1)
    for start in range(0, want.size, _AT_ONCE):
        a, b = a_flat[start : start + _AT_ONCE], b_flat[start : start + _AT_ONCE]
        if strings:
            off = np.array([_bytes(x) != _bytes(y) for x, y in zip(a, b, strict=True)], np.float64)
            size = np.ones_like(off)
            wrong = off > 0
        else:
            unequal = a != b  # before the conversion, which makes large integers equal
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            with np.errstate(invalid="ignore"):  # infinity less infinity
                off = np.where((np.isnan(a) & np.isnan(b)) | ~unequal, 0.0, np.abs(a - b))
            size = np.where(np.isfinite(a), np.abs(a), 0.0)
            wrong = unequal if exact else ~(off <= absolute + relative * size)
        figures["max_abs"] = float(np.fmax(figures["max_abs"], off.max(initial=0)))
        figures["max_rel"] = float(
            np.fmax(figures["max_rel"], (off / np.maximum(size, 1e-12)).max(initial=0))
        )
        if wrong.any():
            wrong_values += int(wrong.sum())
            ranked = np.where(wrong, np.nan_to_num(off, nan=np.inf), -1)
            index = int(np.argmax(ranked))
            if ranked[index] > worst_off:
                worst, worst_off = start + index, float(ranked[index])
    return figures, wrong_values, worst


def _bytes(value: Any) -> bytes:
    return bytes(value) if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
