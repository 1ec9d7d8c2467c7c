"""Reservoir sampling of a stream of rows, balanced over groups, and the same in each pass of the stream."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

_SLACK = 8  # one part in so many more rows are held than are wanted, so that they are seldom sorted
_NEVER = np.iinfo(np.uint64).max


class StableSample:
    """Choice of rows of a stream, and of a slot for each, of a bounded number of slots.

    Streams of up to `limit` rows are kept completely. Of longer streams, every group (for example, a class)
    has the same number of rows, or all of its rows if there are fewer. The choice depends only on the seed,
    the rows' positions and their groups, and not on the batches. After the first pass it is fixed.

    A row's priority is a hash of its place. Within its group it competes by priority; what a group may
    keep only ever shrinks as more rows come, so a row that is dropped once would be dropped in the end.

    Attributes:
        capacity: slots that `take` gives out, 0 to capacity - 1; a little more than `limit`.
        indices: positions of the chosen rows in the stream, ascending; None before the first pass ends.
    """

    def __init__(self, limit: int, *, seed: int = 0) -> None:
        self.limit = limit
        self.capacity = limit + max(1, limit // _SLACK)
        self.indices: Indices | None = None
        self._seed = np.uint64(seed)
        self._seen: int
        self._dropped: NDArray[np.uint64]  # by group, the best priority that was dropped
        self._held: Indices  # [place in the stream, group, slot] by row
        self._priorities: NDArray[np.uint64]
        self.begin()

    def take(self, rows: int, groups: Indices | None = None) -> tuple[Indices, Indices]:
        """Return (positions in this batch, slots) of the rows to keep; a slot may be used again later.

        Args:
            rows: number of rows in the batch.
            groups: group of each row, int64 [row], numbered from 0; None for one group. Only the first pass
                uses it.
        """
        first = self._seen
        self._seen += rows
        if self.indices is not None:
            start, end = np.searchsorted(self.indices, (first, self._seen))
            return self.indices[start:end] - first, np.arange(start, end)
        index = np.arange(first, self._seen)
        group = np.zeros(rows, np.int64) if groups is None else groups
        if rows and group.max() >= len(self._dropped):
            self._dropped = np.append(
                self._dropped, np.full(int(group.max()) + 1 - len(self._dropped), _NEVER)
            )
        priority = _hashed(index, self._seed)
        candidates = np.flatnonzero(priority < self._dropped[group])
        new = np.stack([index, group, np.full(rows, -1)])[:, candidates]
        held, priorities = (
            np.concatenate([self._held, new], axis=1),
            np.append(self._priorities, priority[candidates]),
        )
        if held.shape[1] > self.capacity:
            held, priorities = self._best(held, priorities)
        unplaced = np.flatnonzero(held[2] < 0)
        free = np.setdiff1d(np.arange(self.capacity), held[2], assume_unique=False)[: len(unplaced)]
        held[2, unplaced] = free
        self._held, self._priorities = held, priorities
        return held[0, unplaced] - first, free

    def end(self) -> Indices:
        """End the pass, and return the slots of the chosen rows in the stream's order."""
        if self.indices is not None:
            count = int(np.searchsorted(self.indices, self._seen))
            self.begin()
            return np.arange(count)
        held = self._held
        if held.shape[1] > self.limit:
            held, _ = self._best(held, self._priorities)
        order = np.argsort(held[0])
        slots: Indices = held[2, order]
        self.indices = held[0, order]
        self.begin()
        return slots

    def begin(self) -> None:
        """Start a new pass, and discard an unfinished one."""
        self._dropped = np.full(0, _NEVER)
        self._seen = 0
        self._held = np.empty((3, 0), np.int64)
        self._priorities = np.empty(0, np.uint64)

    def _best(self, held: Indices, priorities: NDArray[np.uint64]) -> tuple[Indices, NDArray[np.uint64]]:
        group = held[1]
        order = np.lexsort((priorities, group))
        starts = np.flatnonzero(np.diff(group[order], prepend=-1))
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
        order = np.lexsort((priorities, rank))
        chosen, dropped = order[: self.limit], order[self.limit :]
        np.minimum.at(self._dropped, group[dropped], priorities[dropped])
        return held[:, chosen], priorities[chosen]


def group_numbers(values: Any, known: dict[Any, int], most: int = 1000) -> Indices:
    """Return a number for each value, the same for equal ones; values beyond the first `most` share one.

    Args:
        values: hashable, one a row.
        known: the numbers given so far, which grows.
    """
    numbers = np.empty(len(values), np.int64)
    for row, value in enumerate(values):
        if value not in known and len(known) < most:
            known[value] = len(known)
        numbers[row] = known.get(value, most)
    return numbers


def _hashed(index: Indices, seed: np.uint64) -> NDArray[np.uint64]:
    """splitmix64 (Steele, Lea and Flood 2014): distinct for distinct indices, so no two rows tie."""
    start = np.array([seed]) * np.uint64(0xD1342543DE82EF95)  # an array's product wraps without a warning
    z = (index.astype(np.uint64) + start) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
