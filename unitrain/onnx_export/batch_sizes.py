"""Comparison of onnxruntime with torch at several batch sizes, and of each row with its answer alone.

A server batches the requests of several clients, so a row's answer must depend on nothing but the row.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from unitrain.errors import ExportError, HookError
from unitrain.onnx_export.served_graph import run_torch
from unitrain.repository.onnx_session import GraphSession, Tolerance, compare

if TYPE_CHECKING:
    from unitrain.onnx_export.served_graph import ServedGraph

Arrays = dict[str, np.ndarray]
SMALL_SIZES = (1, 2, 3, 16)
"""Batch sizes that are always tried."""
LARGE_SIZES = (17, 33, 64, 100, 256, 1000, 4096, 16384)
"""Batch sizes that are tried up to the maximum, as far as bytes and time allow."""
MAX_BYTES = 32_000_000
"""Bytes of the inputs and outputs of a batch of more than 16 rows, at most: forward holds a multiple of it."""
OUTLIER_SCALES = (8, 0)
"""Factors of the float inputs of neighbours, before a training: rows that a sample seldom has."""
LOOSE_INTEGER_SHARE = 0.1
"""Share of integers in which a row in a batch may differ from the row alone: last bits decide between equals."""


@dataclass(frozen=True)
class BatchReport:
    """Result of a comparison.

    Attributes:
        figures: by output the largest absolute and relative difference over all batch sizes.
        largest: the largest batch that was tried, in rows.
        failure: what differs, and what to do about it; None where nothing does.
    """

    figures: dict[str, dict[str, float]]
    largest: int
    failure: str | None = None


def compare_batches(  # noqa: C901, PLR0912 - one size after the other, and what each may show
    served: "ServedGraph",
    session: GraphSession | None,
    sample: Mapping[str, np.ndarray],
    *,
    tolerance: Tolerance,
    batched: bool,
    max_rows: int,
    limit_s: float,
    alone_rows: int = SMALL_SIZES[-1],
) -> BatchReport:
    """Compare onnxruntime with torch at batch sizes up to a maximum.

    Args:
        session: None: compare torch's answers to a row in several batches alone.
        sample: real inputs, [row, ...] each; further rows are mixtures of these.
        batched: compare each row's answer with that of the row alone, too.
        max_rows: rows of a request, at most.
        limit_s: seconds after which no larger batch is begun.
        alone_rows: rows that are answered by themselves, too.
    """
    worst: dict[str, dict[str, float]] = {}
    largest = 0
    alone: dict[str, np.ndarray] | None = None
    started_s = time.monotonic()
    last_s = 0.0
    row_bytes = sum(array[:1].nbytes for array in sample.values())
    checked = min(SMALL_SIZES[-1], max_rows)  # rows among which each is compared with its answer alone
    for rows in _sizes(max_rows if batched else SMALL_SIZES[-1]):
        large = rows > SMALL_SIZES[-1]
        growth = rows / max(largest, 1)
        if large and (
            rows * row_bytes > MAX_BYTES or time.monotonic() - started_s + last_s * growth > limit_s
        ):
            break
        begun_s = time.monotonic()
        try:
            inputs = distinct_rows(sample, rows)
            expected = _run(served, inputs)
            got = expected if session is None else session.run(inputs)
        except HookError:
            raise
        except ExportError as error:
            return BatchReport(worst, largest, f"with {rows} rows {error}")
        except Exception as error:  # noqa: BLE001 - whatever a user's forward raises
            if large and "memory" in str(error).lower() + type(error).__name__.lower():
                break
            return BatchReport(worst, largest, _fails(rows, error))
        row_bytes = max(row_bytes, sum(a.nbytes for a in (*inputs.values(), *expected.values())) // rows)
        if rows == 1:
            expected = {name: _like(array, got.get(name)) for name, array in expected.items()}
        difference = compare(expected, got, tolerance)
        if batched and rows == checked > 1:
            alone = _alone(served, {name: array[:alone_rows] for name, array in inputs.items()}, expected)
        # A module that mixes rows differs from its graph, too; the mixing is what the user can look for.
        if alone is not None:
            mixed = _mixed(alone, expected, rows, tolerance)
            if mixed is None and session is None and rows == checked <= alone_rows:
                mixed = _among_outliers(served, inputs, alone, tolerance)
            if mixed:
                return BatchReport(worst, largest, _random(served, inputs, tolerance) or mixed)
        if difference.failure:
            return BatchReport(
                worst, largest,
                f"with {rows} rows {difference.failure}; look for randomness in forward, or widen "
                "publish.tolerance (absolute, relative or by_dtype)",
            )  # fmt: skip
        for name, figures in difference.by_output.items():
            seen = worst.setdefault(name, dict.fromkeys(figures, 0.0))
            worst[name] = {key: max(seen[key], value) for key, value in figures.items()}
        largest, last_s = rows, time.monotonic() - begun_s
    return BatchReport(worst, largest)


def distinct_rows(sample: Mapping[str, np.ndarray], count: int) -> Arrays:
    """Real rows, and beyond them rows between two real ones, so that no two are alike where values can vary."""
    real = max((len(array) for array in sample.values()), default=0)
    further = max(0, count - real)
    # Row by row, so that a row is the same one in a batch of any size.
    first, apart = np.random.default_rng(0).integers([real, max(1, real - 1)], size=(further, 2)).T
    second = (first + 1 + apart) % max(1, real)
    share = np.random.default_rng(1).uniform(0.1, 0.9, further)
    made = {}
    for name, array in sample.items():
        rows = array[first]
        if further and array.dtype.kind == "f":
            t = share.reshape(-1, *[1] * (array.ndim - 1)).astype(array.dtype)
            mixture = rows * (1 - t) + array[second] * t
            if (array == array[:1]).all():  # one real row only
                mixture = mixture * (1 + 0.2 * (t - array.dtype.type(0.5)))
            rows = mixture.astype(array.dtype)
        made[name] = np.concatenate([array, rows])[:count]
    return made


def _sizes(max_rows: int) -> Iterator[int]:
    sizes = {size for size in (*SMALL_SIZES, *LARGE_SIZES) if size <= max_rows}
    yield from sorted(sizes | {max_rows})


def _run(served: "ServedGraph", inputs: Arrays) -> Arrays:
    return run_torch(served, inputs)


def _alone(served: "ServedGraph", inputs: Arrays, together: Arrays) -> Arrays:
    """The answers to rows one by one, joined; shaped as they are in a batch."""
    answers = []
    for i in range(len(next(iter(inputs.values())))):
        answer = _run(served, {name: array[i : i + 1] for name, array in inputs.items()})
        answers.append({name: _like(array, together[name][i : i + 1]) for name, array in answer.items()})
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}


def _fails(rows: int, error: Exception) -> str:
    """The failure of forward with that many rows, in words."""
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    if "more than 1 value per channel" in reason:  # torch's words for a batch normalisation of one row
        return (
            f"with {rows} rows forward fails: {reason}; it normalises by the statistics of its batch in evaluation, too, and "
            "a server puts the requests of several clients into one batch: let BatchNorm keep running statistics "
            "(track_running_stats=True, training=False after eval()), or use LayerNorm or GroupNorm"
        )
    return f"with {rows} rows forward fails: {reason}; a server sends from 1 to publish.max_batch_size rows at once"


def _among_outliers(served: "ServedGraph", inputs: Arrays, alone: Arrays, tolerance: Tolerance) -> str | None:
    """A row whose answer depends on neighbours of a scale that the sample lacks, in words.

    Every second row is replaced. Only the answers of the others count, and a forward that fails counts for nothing.
    """
    if not any(array.dtype.kind == "f" for array in inputs.values()):
        return None
    rows = len(next(iter(inputs.values())))
    for scale in OUTLIER_SCALES:
        scaled = {name: array.copy() for name, array in inputs.items()}
        for array in scaled.values():
            if array.dtype.kind == "f":
                with np.errstate(over="ignore", invalid="ignore"):
                    array[1::2] *= scale
        try:
            together = _run(served, scaled)
        except Exception:  # noqa: BLE001, S112 - forward takes no such values
            continue
        if any(len(array) != rows for array in together.values()):
            continue
        mixed = _mixed(
            {name: array[::2] for name, array in alone.items()},
            {name: array[::2] for name, array in together.items()},
            rows,
            tolerance,
        )
        if mixed:
            return mixed
    return None


def _random(served: "ServedGraph", inputs: Arrays, tolerance: Tolerance) -> str | None:
    """The failure of a forward that answers the same batch differently when it is called again, in words."""
    difference = compare(
        _run(served, inputs), _run(served, inputs), tolerance, sides=("one call", "the next call")
    )
    if difference.failure is None:
        return None
    return (
        f"forward answers the same rows differently from call to call: {difference.failure}; look for randomness in "
        "evaluation, such as noise or dropout, and draw only while self.training"
    )


def _mixed(alone: Arrays, together: Arrays, rows: int, tolerance: Tolerance) -> str | None:
    """The row whose answer depends on its neighbours, in words."""
    count = min(rows, len(next(iter(alone.values()))))
    loose = replace(tolerance, integer_share=max(tolerance.integer_share, LOOSE_INTEGER_SHARE))
    sides = ("a batch of its own", f"a batch of {rows} rows")
    difference = compare(
        {name: array[:count] for name, array in alone.items()},
        {name: array[:count] for name, array in together.items()},
        loose,
        sides=sides,
    )
    if difference.failure is None:
        return None
    return (
        f"a row's answer depends on the other rows of its batch: {difference.failure}; a server puts the requests of "
        "several clients into one batch, so forward must treat each row by itself: compute means, maxima and norms "
        "over the row's own axes (dim=1 and up), or from running statistics, and branch on no batch size"
    )


def _like(array: np.ndarray, shaped: np.ndarray | None) -> np.ndarray:
    """An answer to one row whose batch axis was squeezed away gets it back."""
    return array.reshape(shaped.shape) if shaped is not None and array.size == shaped.size else array
