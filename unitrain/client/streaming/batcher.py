"""Batching: a thread reads and validates the samples of any iterable, and rows are joined into requests."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from unitrain.client.input_validation import Array, check_finite, fit_item, has_nan
from unitrain.client.metadata import ModelInfo
from unitrain.errors import ClientError, DataError, UsageError

LINGER_S = 0.002
"""Time that rows wait for more rows: a fast source fills requests, and a slow one is not delayed."""

_REQUEST_BYTES = 4 * 2**20
"""Maximum size of a request whose number of rows the batcher chooses: more gains nothing and costs memory."""

_MAX_PREFETCH_ROWS = 2048
"""Maximum number of rows that are read ahead when requests are small."""

_NEVER = float("inf")

Sample = Mapping[str, Any] | ClientError
"""One sample's arrays by input name, or the error that takes its place among the results."""


class Item:
    """A validated sample in flight.

    Attributes:
        index: place of the sample in the source.
        arrays: arrays in the signature's order, [rows, *dims]; [*dims] if the model has no batch axis.
        rows: number of rows; 1 if the model has no batch axis.
        single: True if the sample came without a batch axis; its outputs then have none either.
        unbatched: True if the model has no batch axis.
        error: error of the sample, which then has no arrays.
    """

    __slots__ = ("arrays", "error", "index", "rows", "single", "unbatched")

    def __init__(
        self,
        index: int,
        arrays: list[Array],
        rows: int,
        *,
        single: bool = True,
        unbatched: bool = False,
        error: ClientError | None = None,
    ) -> None:
        self.index = index
        self.arrays = arrays
        self.rows = rows
        self.single = single
        self.unbatched = unbatched
        self.error = error


def max_request_rows(model: ModelInfo, batch_rows: int | None) -> int:
    """Return the maximum number of rows in a request.

    Args:
        model: model that takes the requests.
        batch_rows: the user's choice; None: as many as the server takes, within 4 MiB.

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


class Batcher:
    """Read samples in a separate thread and return them in requests' worth of rows.

    The reader thread only appends to the queue, the stream's thread only removes from it. The reader calls
    `wake` once the queue has as many rows as the stream waits for.

    Args:
        samples: the source, which may be endless.
        model: model that takes the samples.
        max_rows: maximum number of rows in a request.
        wake: function that wakes the stream's thread.
        first_index: index of the first sample.
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
        self._fixed_inputs = _fixed_inputs(model)
        self._max_rows = max_rows
        # Reading ahead saves a switch of threads a row: a few requests' worth, in little memory.
        prefetch_rows = max(8 * max_rows + 64, min(32 * max_rows, _MAX_PREFETCH_ROWS))
        self._prefetch_rows = max(2 * max_rows, min(prefetch_rows, _REQUEST_BYTES // model.row_bytes))
        self._wake = wake
        self._queue: deque[Item] = deque()
        self._rows_in = 0  # written by the reader only
        self._rows_out = 0  # written by the stream only
        self._wake_at_rows: float = 1  # value of `_rows_in` at which the stream is woken
        self._linger_since_s: float | None = None
        self._space = threading.Event()
        self._closed = False
        self._ended = False
        self._source_error: BaseException | None = None
        self._reader = threading.Thread(target=self._read, name="unitrain-batcher", daemon=True)

    def start(self) -> None:
        """Start reading."""
        self._reader.start()

    @property
    def exhausted(self) -> bool:
        """True if the queue is empty and the source has ended."""
        return self._ended and not self._queue

    def raise_source_error(self) -> None:
        """Raise the exception that ended the source, if any."""
        if self._source_error is not None:
            raise self._source_error

    def close(self) -> None:
        """Stop reading and drop the queue."""
        self._closed = True
        self._ended = True
        self._queue.clear()
        self._space.set()

    def join(self, timeout_s: float) -> None:
        """Wait until the reader has ended, so that no resource is closed while it is read; it may hang."""
        self._reader.join(timeout_s)

    def linger_deadline_s(self) -> float | None:
        """Return the monotonic time at which waiting rows are due; None if none wait."""
        return None if self._linger_since_s is None else self._linger_since_s + LINGER_S

    def disable_wake(self) -> None:
        """Do not wake the stream until it takes rows again."""
        self._wake_at_rows = _NEVER

    def take(self, now_s: float) -> list[Item] | None:
        """Return the next request's items; None if there are none yet, or they wait for more.

        Args:
            now_s: monotonic time.
        """
        if not self._queue:
            self._wake_at_rows = self._rows_out + 1
            # The reader may have appended before it could see the new `_wake_at_rows`.
            if not self._queue:
                return None
        if self._rows_in - self._rows_out < self._max_rows and not self._ended:
            if self._linger_since_s is None:
                self._linger_since_s = now_s
            if now_s - self._linger_since_s < LINGER_S:
                self._wake_at_rows = self._rows_out + self._max_rows
                if self._rows_in - self._rows_out < self._max_rows and not self._ended:
                    return None
        self._linger_since_s = None
        self._wake_at_rows = _NEVER
        return self._pop_request()

    def _pop_request(self) -> list[Item]:
        """Remove items of equal shapes from the queue, up to the maximum number of rows."""
        items = [self._queue.popleft()]
        rows = items[0].rows
        shapes = [a.shape[1:] for a in items[0].arrays]
        while self._queue and items[0].error is None:
            following = self._queue[0]
            if following.error is not None or rows + following.rows > self._max_rows:
                break
            if [a.shape[1:] for a in following.arrays] != shapes:
                break
            items.append(self._queue.popleft())
            rows += following.rows
        self._rows_out += rows
        if self._rows_in - self._rows_out <= self._prefetch_rows // 2:
            self._space.set()
        return items

    def _read(self) -> None:
        """Read the source to its end; the reader thread's function."""
        try:
            for index, sample in enumerate(self._samples, self._first_index):
                if self._closed:
                    break
                item = self._item(index, sample)
                self._queue.append(item)
                self._rows_in += item.rows
                if self._rows_in >= self._wake_at_rows:
                    self._wake_at_rows = _NEVER
                    self._wake()
                if self._rows_in - self._rows_out >= self._prefetch_rows:
                    self._wait_for_space()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that reads the results
            self._source_error = error
        finally:
            self._ended = True
            self._wake()
            close = getattr(self._samples, "close", None)
            if isinstance(self._samples, Iterator) and close is not None:
                close()

    def _wait_for_space(self) -> None:
        self._space.clear()
        while self._rows_in - self._rows_out >= self._prefetch_rows and not self._closed:
            self._space.wait()

    def _item(self, index: int, sample: Sample) -> Item:
        """Validate a sample."""
        if isinstance(sample, ClientError):
            return Item(index, [], 1, error=sample)
        exact = self._exact_item(index, sample)
        if exact is not None:
            return exact
        signature, limit = self._model.signature, self._model.max_batch_size
        try:
            arrays, single = fit_item(sample, signature, f"sample {index}")
            if not signature.batched:
                return Item(index, arrays, 1, unbatched=True)
        except DataError as error:
            return Item(index, [], 1, error=error)
        if len(arrays[0]) > limit:
            text = f"sample {index}: the model takes {limit} rows a request, got {len(arrays[0])}"
            return Item(index, [], 1, error=DataError(text))
        return Item(index, arrays, len(arrays[0]), single=single)

    def _exact_item(self, index: int, sample: Mapping[str, Any]) -> Item | None:
        """Return the item of a sample that needs no conversion, in a tenth of the time; None for others."""
        inputs = self._fixed_inputs
        if inputs is None or len(sample) != len(inputs):
            return None
        arrays: list[Array] = []
        rows = 0  # 0: without a batch axis
        for name, dtype, dims in inputs:
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


def _fixed_inputs(model: ModelInfo) -> list[tuple[str, np.dtype[Any], tuple[int, ...]]] | None:
    """Return name, dtype and dims of each input; None if a shape is open, or without a batch axis."""
    fixed = all(-1 not in spec.dims and spec.dtype != "BYTES" for spec in model.inputs)
    return [(s.name, s.numpy, s.dims) for s in model.inputs] if fixed and model.signature.batched else None


def join_rows(
    items: list[Item],
    model: ModelInfo,
    *,
    allow_nan: bool,
    allocate: Callable[[int], list[Array]] | None = None,
) -> list[Array]:
    """Join the items' rows to one array an input; an item with a NaN gets its error and is skipped.

    Args:
        items: items of equal shapes, except for the rows.
        model: model that takes them.
        allow_nan: keep NaN.
        allocate: returns the arrays to fill, for a number of rows; None: new arrays.
    """
    valid = [item for item in items if item.error is None]
    arrays = _concatenate(valid, allocate)
    if allow_nan or not any(map(has_nan, arrays)):
        return arrays
    for item in valid:
        try:
            for spec, array in zip(model.inputs, item.arrays, strict=True):
                check_finite(
                    array[0] if item.single and model.signature.batched else array,
                    spec,
                    f"sample {item.index}",
                )
        except DataError as error:
            item.error = error
    return _concatenate([item for item in valid if item.error is None], allocate)


def _concatenate(items: list[Item], allocate: Callable[[int], list[Array]] | None) -> list[Array]:
    if not items:
        return []
    if allocate is None:
        if len(items) == 1:
            return items[0].arrays
        return [np.concatenate(parts) for parts in zip(*(item.arrays for item in items), strict=True)]
    filled = allocate(sum(item.rows for item in items))
    for target, *parts in zip(filled, *(item.arrays for item in items), strict=True):
        if items[0].unbatched:
            np.copyto(target, parts[0])
        else:
            np.concatenate(parts, out=target)
    return filled
