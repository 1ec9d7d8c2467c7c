"""Samples taken from any iterable by a thread of its own, checked, and handed out as requests' worth of rows."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from unitrain.client.input_validation import Array, check_finite, fit_item, has_nan
from unitrain.client.metadata import ModelInfo
from unitrain.errors import ClientError, DataError, UsageError

LINGER_S = 0.002
"""How long rows at hand wait for more, so that a fast source fills requests and a slow one is not held up."""

_REQUEST_BYTES = 4 * 2**20
"""What a request holds at most when its rows are chosen for it: more gains nothing, and costs memory."""

_FEW_ROWS = 2048
"""Small requests are read ahead by more of them than large ones, up to so many rows."""

_NEVER = float("inf")

Sample = Mapping[str, Any] | ClientError
"""One sample by input name, or what is wrong with it: that takes its place among the results."""


class Item:
    """A sample on its way.

    Attributes:
        index: its place in the source.
        arrays: in the signature's order, with the batch axis first where the model has one.
        rows: it has; 1 where the model takes whole arrays.
        single: it came without a batch axis, so its outputs go without one.
        whole: the model has no batch axis.
        error: what is wrong with it; then there are no arrays.
    """

    __slots__ = ("arrays", "error", "index", "rows", "single", "whole")

    def __init__(
        self,
        index: int,
        arrays: list[Array],
        rows: int,
        *,
        single: bool = True,
        whole: bool = False,
        error: ClientError | None = None,
    ) -> None:
        self.index = index
        self.arrays = arrays
        self.rows = rows
        self.single = single
        self.whole = whole
        self.error = error


def rows_a_request(model: ModelInfo, batch_rows: int | None) -> int:
    """How many rows a request takes at most.

    Raises:
        UsageError: `batch_rows` is more than the server takes, or less than 1.
    """
    if not model.signature.batched:
        return 1
    if batch_rows is None:
        return min(model.max_batch_size, max(1, _REQUEST_BYTES // model.row_bytes))
    if not 1 <= batch_rows <= model.max_batch_size:
        raise UsageError(
            f"batch_rows: model {model.name} takes 1 to {model.max_batch_size} rows a request, got {batch_rows}"
        )
    return batch_rows


class Intake:
    """The reading side of a stream.

    The reader's thread appends to a queue and never takes; the stream's thread takes and never appends.
    `wake` is called when as many rows are there as the stream said it waits for.
    """

    def __init__(
        self,
        samples: Iterable[Sample],
        model: ModelInfo,
        max_rows: int,
        *,
        wake: Callable[[], None],
        first_index: int = 0,
    ) -> None:
        self._first_index = first_index
        self._samples = samples
        self._model = model
        self._plain = _plain_row(model)
        self._max_rows = max_rows
        # Reading ahead spares a change of threads a row; a few requests' worth, and little memory.
        ahead_rows = max(8 * max_rows + 64, min(32 * max_rows, _FEW_ROWS))
        self._ahead_rows = max(2 * max_rows, min(ahead_rows, _REQUEST_BYTES // model.row_bytes))
        self._wake = wake
        self._items: deque[Item] = deque()
        self._rows_in = 0  # written by the reader only
        self._rows_out = 0  # written by the stream only
        self._wake_at: float = 1  # rows ever read at which the stream is to be woken
        self._waiting_since: float | None = None
        self._room = threading.Event()
        self._closed = False
        self._ended = False
        self._failure: BaseException | None = None
        self._reader = threading.Thread(target=self._read, name="unitrain-intake", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._reader.start()

    @property
    def exhausted(self) -> bool:
        """Whether nothing is left, nor will come."""
        return self._ended and not self._items

    def raise_failure(self) -> None:
        """Raise what the source raised, if it did."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Take nothing more from the source, and forget what is at hand."""
        self._closed = True
        self._ended = True
        self._items.clear()
        self._room.set()

    def join(self, timeout_s: float) -> None:
        """Wait for the source to be done with, so that nobody closes what it still reads; it may be stuck."""
        self._reader.join(timeout_s)

    def due_at(self) -> float | None:
        """When rows that wait for more will be handed out all the same."""
        return None if self._waiting_since is None else self._waiting_since + LINGER_S

    def idle(self) -> None:
        """Say that no rows are wanted for now."""
        self._wake_at = _NEVER

    def take(self, now: float) -> list[Item] | None:
        """The next request's items, or None while they are to wait for more, or for any."""
        if not self._items:
            self._wake_at = self._rows_out + 1
            # The reader may have appended before it could see that it is waited for.
            if not self._items:
                return None
        if self._rows_in - self._rows_out < self._max_rows and not self._ended:
            if self._waiting_since is None:
                self._waiting_since = now
            if now - self._waiting_since < LINGER_S:
                self._wake_at = self._rows_out + self._max_rows
                if self._rows_in - self._rows_out < self._max_rows and not self._ended:
                    return None
        self._waiting_since = None
        self._wake_at = _NEVER
        return self._cut()

    def _cut(self) -> list[Item]:
        items = [self._items.popleft()]
        rows = items[0].rows
        shapes = [a.shape[1:] for a in items[0].arrays]
        while self._items and items[0].error is None:
            following = self._items[0]
            if following.error is not None or rows + following.rows > self._max_rows:
                break
            if [a.shape[1:] for a in following.arrays] != shapes:
                break
            items.append(self._items.popleft())
            rows += following.rows
        self._rows_out += rows
        if self._rows_in - self._rows_out <= self._ahead_rows // 2:
            self._room.set()
        return items

    def _read(self) -> None:
        try:
            for index, sample in enumerate(self._samples, self._first_index):
                if self._closed:
                    break
                item = self._item(index, sample)
                self._items.append(item)
                self._rows_in += item.rows
                if self._rows_in >= self._wake_at:
                    self._wake_at = _NEVER
                    self._wake()
                if self._rows_in - self._rows_out >= self._ahead_rows:
                    self._wait_for_room()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that reads the results
            self._failure = error
        finally:
            self._ended = True
            self._wake()
            close = getattr(self._samples, "close", None)
            if isinstance(self._samples, Iterator) and close is not None:
                close()

    def _wait_for_room(self) -> None:
        self._room.clear()
        while self._rows_in - self._rows_out >= self._ahead_rows and not self._closed:
            self._room.wait()

    def _plain_item(self, index: int, sample: Mapping[str, Any]) -> Item | None:
        """The item of nearly every sample of a fast source: right as it is, and told so in a tenth of the time."""
        plain = self._plain
        if plain is None or len(sample) != len(plain):
            return None
        arrays: list[Array] = []
        rows = 0  # 0: without a batch axis
        for name, dtype, dims in plain:
            array = sample.get(name)
            if type(array) is not np.ndarray or array.dtype != dtype:
                return None
            shape = array.shape
            count = 0 if shape == dims else shape[0] if len(shape) > len(dims) and shape[1:] == dims else -1
            if (arrays and count != rows) or count < 0 or (count == 0 and shape != dims):
                return None
            rows = count
            arrays.append(array if count else array[None])
        if rows > self._model.max_batch_size:
            return None
        return Item(index, arrays, rows or 1, single=not rows)

    def _item(self, index: int, sample: Sample) -> Item:
        if isinstance(sample, ClientError):
            return Item(index, [], 1, error=sample)
        plain = self._plain_item(index, sample)
        if plain is not None:
            return plain
        signature, limit = self._model.signature, self._model.max_batch_size
        try:
            arrays, single = fit_item(sample, signature, f"sample {index}")
            if not signature.batched:
                return Item(index, arrays, 1, whole=True)
        except DataError as error:
            return Item(index, [], 1, error=error)
        if len(arrays[0]) > limit:
            text = f"sample {index}: the model takes {limit} rows a request, got {len(arrays[0])}"
            return Item(index, [], 1, error=DataError(text))
        return Item(index, arrays, len(arrays[0]), single=single)


def _plain_row(model: ModelInfo) -> list[tuple[str, np.dtype[Any], tuple[int, ...]]] | None:
    """Name, dtype and shape of each input of a row, where they are all fixed."""
    fixed = all(-1 not in spec.dims and spec.dtype != "BYTES" for spec in model.inputs)
    return [(s.name, s.numpy, s.dims) for s in model.inputs] if fixed and model.signature.batched else None


def join(
    items: list[Item],
    model: ModelInfo,
    *,
    allow_nan: bool,
    place: Callable[[int], list[Array]] | None = None,
) -> list[Array]:
    """The items' rows as one array an input; an item with a NaN gets its error and is left out.

    Args:
        items: of equal shapes but for the rows.
        model: that they are for.
        allow_nan: leave NaN in.
        place: gives the arrays to be filled for so many rows; None: new ones.
    """
    good = [item for item in items if item.error is None]
    arrays = _concatenate(good, place)
    if allow_nan or not any(map(has_nan, arrays)):
        return arrays
    for item in good:
        try:
            for spec, array in zip(model.inputs, item.arrays, strict=True):
                check_finite(
                    array[0] if item.single and model.signature.batched else array,
                    spec,
                    f"sample {item.index}",
                )
        except DataError as error:
            item.error = error
    return _concatenate([item for item in good if item.error is None], place)


def _concatenate(items: list[Item], place: Callable[[int], list[Array]] | None) -> list[Array]:
    if not items:
        return []
    if place is None:
        if len(items) == 1:
            return items[0].arrays
        return [np.concatenate(parts) for parts in zip(*(item.arrays for item in items), strict=True)]
    filled = place(sum(item.rows for item in items))
    for target, *parts in zip(filled, *(item.arrays for item in items), strict=True):
        if items[0].whole:
            np.copyto(target, parts[0])
        else:
            np.concatenate(parts, out=target)
    return filled
