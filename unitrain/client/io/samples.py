"""Types that sources share: a sample, its error, its name; a source's samples; a sliding window's size."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from unitrain.errors import DataError

FILE_SUFFIXES = (".csv", ".npy", ".npz", ".jsonl")
"""File formats that `--input` reads and `--output` writes."""

Note = Callable[[str], None]
"""Function that prints a remark for the user, which is no error."""

SampleOrError = Mapping[str, Any] | DataError
"""One sample's arrays by input name, without a batch axis; or the error that takes its place."""


@dataclass(frozen=True)
class Samples:
    """Samples of a source, read one at a time.

    Attributes:
        rows: samples in the source's order, read once.
        total: number of samples, or None if it is unknown before the end.

    Example:
        >>> samples = Samples(iter([{"x": 0}, {"x": 1}, {"x": 2}]), total=3)
        >>> rest = samples.cut(skip=1, count=None)
        >>> rest.total, [*rest.rows]
        (2, [{'x': 1}, {'x': 2}])
    """

    rows: Iterator[SampleOrError]
    total: int | None = None

    def cut(self, skip: int, count: int | None) -> "Samples":
        """Return these samples without the first ones, up to a maximum.

        Args:
            skip: number of samples to skip.
            count: maximum number of samples, the skipped ones included; None: all.
        """
        total = self.total if count is None else count if self.total is None else min(count, self.total)
        rest = itertools.islice(self.rows, skip, None if count is None else max(skip, count))
        return Samples(rest, None if total is None else max(0, total - skip))


@dataclass(frozen=True)
class Windows:
    """Size and hop of a window that slides over a long signal.

    Attributes:
        steps: length of a window, in steps of the signal.
        hop: steps from the start of one window to the start of the next.
    """

    steps: int
    hop: int


class NamedSample(dict[str, Any]):
    """Sample with a name: that of the file it was read from.

    Attributes:
        name: file name without its folder.
    """

    def __init__(self, values: Mapping[str, Any], name: str) -> None:
        super().__init__(values)
        self.name = name
