"""Reading of JSON files that another program may have written: size limits, and checks of fields.

A check is a function `(value, where)` that raises ValueError, with a message that names the expected type.
"""

import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MAX_BYTES = 64 * 2**20
"""Limit of a file: a manifest has a few kB, a run's record with its git diff a few MB."""
MAX_DEPTH = 64
"""Limit of nested levels."""

_LARGEST_INTEGER = 2**63

Check = Callable[[Any, str], None]


def read_regular(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the content of a regular file of bounded size; never block on a pipe or a device.

    Raises:
        OSError: it is missing or can't be read.
        ValueError: it is a folder, a pipe or a device, or larger than `max_bytes`.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is not a regular file")
        if found.st_size > max_bytes:
            raise ValueError(f"it has {found.st_size:,} bytes, the limit is {max_bytes:,}")
        return file.read(max_bytes)


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        OSError: it is missing or can't be read.
        ValueError: it is not JSON in UTF-8, is nested too deeply, or is too large; or it is not a regular file.
    """
    try:
        value = json.loads(read_regular(path).decode("utf-8"))
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels") from error
    _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")


def text(value: Any, where: str) -> None:
    """Check for a string."""
    _expect(isinstance(value, str), value, where, "text")


def truth(value: Any, where: str) -> None:
    """Check for true or false."""
    _expect(isinstance(value, bool), value, where, "true or false")


def integer(value: Any, where: str) -> None:
    """Check for an integer of 64 bits."""
    fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST_INTEGER
    _expect(fits, value, where, "an integer of 64 bits")


def number(value: Any, where: str) -> None:
    """Check for a number; null is accepted, since it replaces NaN and infinities in JSON."""
    if value is not None and not isinstance(value, float):
        _expect(isinstance(value, int) and not isinstance(value, bool), value, where, "a number")
        integer(value, where)


def optional(check: Check) -> Check:
    """Return the same check, with null allowed."""
    return lambda value, where: None if value is None else check(value, where)


def list_of(check: Check) -> Check:
    """Return a check for a list whose elements pass `check`."""

    def run(value: Any, where: str) -> None:
        _expect(isinstance(value, list), value, where, "a list")
        for position, element in enumerate(value):
            check(element, f"{where}[{position}]")

    return run


def mapping_of(check: Check) -> Check:
    """Return a check for an object with any keys, whose values pass `check`."""

    def run(value: Any, where: str) -> None:
        _expect(isinstance(value, dict), value, where, "an object")
        for key, element in value.items():
            check(element, f"{where}.{key}")

    return run


def object_with(fields: Mapping[str, Check], required: tuple[str, ...] = ()) -> Check:
    """Return a check for an object.

    Args:
        fields: check by key; other keys may have any value.
        required: keys that must be present.
    """

    def run(value: Any, where: str) -> None:
        _expect(isinstance(value, dict), value, where or "the file", "an object")
        for key in required:
            if key not in value:
                raise ValueError(f"{where}.{key} is missing" if where else f"{key} is missing")
        for key, check in fields.items():
            if key in value:
                check(value[key], f"{where}.{key}" if where else key)

    return run


def _expect(fits: bool, value: Any, where: str, expected: str) -> None:
    if not fits:
        raise ValueError(f"{where}: expected {expected}, got {_kind(value)}")


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case str():
            return "text"
        case int() | float():
            return "a number"
        case list():
            return "a list"
    return "an object"
