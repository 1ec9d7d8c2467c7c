"""Validation of inputs: names, dtypes and shapes; lossless conversions, an error for any other."""

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from unitrain.errors import DataError
from unitrain.signature import DTYPES, Signature, TensorSpec, dtype_of_array

Array = np.ndarray[Any, Any]


def check_names(got: Iterable[str], signature: Signature, where: str) -> None:
    """Check that names are exactly those of the model's inputs.

    Raises:
        DataError: an input is missing or unknown; the message has the nearest name.
    """
    names, expected = set(got), [spec.name for spec in signature.inputs]
    if names == set(expected):
        return
    wants = f"the model's inputs are {', '.join(map(str, signature.inputs))}"
    unknown = sorted(names.difference(expected))
    if unknown:
        near = difflib.get_close_matches(unknown[0], expected, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise DataError(f"{where}: there is no input {unknown[0]}; {wants}{hint}")
    missing = next(name for name in expected if name not in names)
    raise DataError(f"{where}: input {missing} is missing; {wants}")


def fit_item(values: Mapping[str, Any], signature: Signature, where: str) -> tuple[list[Array], bool]:
    """Return one sample's arrays in the signature's order, and True if it came without a batch axis.

    For a batched signature, every returned array has the batch axis first; a sample without one becomes one
    row. Either all inputs of a sample have the batch axis, or none has.

    Args:
        values: arrays by input name, [rows, *dims] or [*dims].
        signature: the model's inputs.
        where: start of error messages.

    Raises:
        DataError: a name, dtype or shape that does not fit.
    """
    if values.keys() != {spec.name for spec in signature.inputs}:
        check_names(values, signature, where)
    arrays = [fit_dtype(values[spec.name], spec, where) for spec in signature.inputs]
    if not signature.batched:
        for spec, array in zip(signature.inputs, arrays, strict=True):
            _check_shape(array.shape, spec, where, batched=False)
        return arrays, True
    # Triton's clients give a single value a row as [rows, 1]: an input with dims shows best if there are rows.
    at = next((place for place, spec in enumerate(signature.inputs) if spec.dims), 0)
    first = signature.inputs[at]
    single = arrays[at].ndim == len(first.dims) or (arrays[at].ndim == 0 and first.dims == (1,))
    if single:
        arrays = [
            a.reshape(1, 1) if a.ndim == 0 and s.dims == (1,) else a[None]
            for a, s in zip(arrays, signature.inputs, strict=True)
        ]
    arrays = [
        a.reshape(a.shape[:1]) if not s.dims and a.shape[1:] == (1,) else a
        for a, s in zip(arrays, signature.inputs, strict=True)
    ]
    for spec, array in zip(signature.inputs, arrays, strict=True):
        _check_shape(array.shape[1:], spec, where, batched=True, got=array.shape[1 if single else 0 :])
    if len({len(a) for a in arrays}) > 1:
        rows = ", ".join(f"{s.name} {len(a)}" for s, a in zip(signature.inputs, arrays, strict=True))
        raise DataError(f"{where}: inputs of one sample must have as many rows each, got {rows}")
    if len(arrays[0]) == 0:
        raise DataError(f"{where}: input {first.name} has no rows")
    return arrays, single


def one_row(array: Array, index: int) -> Array:
    """Return a row as an array, also a single value, which numpy would return as a bare number or object."""
    return array[index] if array.ndim > 1 else array[index : index + 1].reshape(())


def row_views(array: Array) -> Iterable[Array]:
    """Return the rows as arrays, in order."""
    return array if array.ndim > 1 else (one_row(array, index) for index in range(len(array)))


def fit_dtype(value: Any, spec: TensorSpec, where: str) -> Array:
    """Return `value` as an array of the tensor's dtype.

    An array is converted only if every value stays the same. Floats in numbers and lists, which have no
    dtype, are rounded to it.

    Args:
        value: array, number, string, or nested lists of them.
        spec: the input.
        where: start of error messages.

    Raises:
        DataError: it can't be converted, or a value would change.
    """
    if isinstance(value, np.ndarray):
        if value.dtype == spec.numpy and spec.dtype != "BYTES":
            return value
        return _convert(value, spec, where, exact=True)
    if isinstance(value, np.generic):
        return _convert(np.asarray(value), spec, where, exact=True)
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{where}: input {spec.name} is no regular array of {spec.dtype}: {error}") from error
    exact = hasattr(value, "__array__") or array.dtype.kind != "f" or spec.numpy.kind != "f"
    return _convert(array, spec, where, exact=exact)


def check_finite(array: Array, spec: TensorSpec, where: str) -> None:
    """Check that an array has no NaN.

    Raises:
        DataError: it has one; the message has its indices.
    """
    if has_nan(array):
        place = [int(i) for i in np.argwhere(np.isnan(array))[0]]
        raise DataError(
            f"{where}: input {spec.name} holds NaN at {place}; --allow-nan (allow_nan=True) sends it"
        )


def has_nan(array: Array) -> bool:
    """Return True if an array of any dtype has a NaN."""
    # The minimum of values with a NaN is NaN: one fast pass, without an array of booleans.
    return array.dtype.kind == "f" and array.size > 0 and math.isnan(array.min())


def _convert(array: Array, spec: TensorSpec, where: str, *, exact: bool) -> Array:
    target = spec.numpy
    if spec.dtype == "BYTES":
        return _to_bytes(array, spec, where)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where}: input {spec.name} must be {spec.dtype}, got {_name(array.dtype)}")
    if array.dtype == target or np.can_cast(array.dtype, target, "safe"):
        return array.astype(target, copy=False)
    # A bool is never converted to a number, nor a number to a bool.
    if "b" not in (array.dtype.kind, target.kind):
        with np.errstate(all="ignore"):
            changed = array.astype(target)
            back = changed.astype(array.dtype)
        same = (back == array) | ((back != back) & (array != array))  # noqa: PLR0124 - NaN stays NaN
        # An integer of another range and the same size wraps back to itself: only its sign shows it.
        wraps = (
            array.dtype.kind in "iu" and target.kind in "iu" and bool(np.any((changed < 0) != (array < 0)))
        )
        fits = (
            bool(same.all()) and not wraps
            if exact
            else not bool((np.isinf(changed) & ~np.isinf(array)).any())
        )
        if fits:
            return changed
    raise DataError(
        f"{where}: input {spec.name} must be {spec.dtype}, got {_name(array.dtype)} with values that would "
        f"change; convert it first, for instance with .astype(numpy.{DTYPES[spec.dtype].numpy})"
    )


def _to_bytes(array: Array, spec: TensorSpec, where: str) -> Array:
    if array.dtype.kind not in "OSU":
        raise DataError(f"{where}: input {spec.name} must be BYTES (strings), got {_name(array.dtype)}")
    try:
        flat = [v.encode() if isinstance(v, str) else v for v in array.ravel().tolist()]
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: input {spec.name} holds text that is no UTF-8: {error.reason}") from error
    if not all(isinstance(v, bytes) for v in flat):
        raise DataError(f"{where}: input {spec.name} must be BYTES (strings), got other objects")
    out = np.empty(len(flat), dtype=object)
    out[:] = flat
    return out.reshape(array.shape)


def _check_shape(
    shape: tuple[int, ...], spec: TensorSpec, where: str, *, batched: bool, got: tuple[int, ...] | None = None
) -> None:
    fits = len(shape) == len(spec.dims) and all(d in (-1, n) for d, n in zip(spec.dims, shape, strict=True))
    if not fits:
        dims = ", ".join("?" if d < 0 else str(d) for d in spec.dims)
        rows = f" or [rows{', ' if dims else ''}{dims}]" if batched else ""
        raise DataError(
            f"{where}: input {spec.name} must have the shape [{dims}]{rows}, got {list(shape if got is None else got)}"
        )


def _name(dtype: Any) -> str:
    try:
        return dtype_of_array(dtype).triton
    except KeyError:
        return str(dtype)
