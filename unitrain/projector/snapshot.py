"""Snapshot of embeddings for the Projector: points, labels, sprites and an event file, in one folder.

TensorBoard reads the Projector's configs again only when the set of runs changes, and a folder becomes a
run by its event file. Each snapshot is therefore a separate run, and its event file is written last.
"""

import codecs
import json
import logging
import os
import re
import shutil
import socket
import struct
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unitrain.atomic_files import fsync_dir, fsync_tree, write_bytes
from unitrain.errors import DataError
from unitrain.projector.thumbnails import write_sprites

Array = np.ndarray[Any, np.dtype[Any]]

MAX_ROWS = 100_000
"""Maximum number of points that the page requests."""
CONFIG_NAME = "projector_config.pbtxt"
SUMMARY_NAME = "snapshot.json"

_STEP = re.compile(r"step_([0-9]+)")
_STALE_S = 3600.0
_UNFIT = re.compile(r"[^\w.@/\[\]()-]+")
"""Characters that the page can't have in a name, since it does not quote them in URLs."""
_LONGEST_LABEL = 200
_EMPTY = "(empty)"
_BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
"""Characters that end a line or a cell for the server, which reads with universal newlines, or for the page."""
_NARROWEST = 3  # the page draws three axes; with fewer it computes NaN and shows nothing
_HEAD_BYTES = 8192  # bytes that Python's text files decode at a time
_LINE_END = re.compile(rb"[\r\n]")  # with TensorFlow installed, the plugin decodes a line at a time
_CONTINUATION, _LAST_INVALID_LEAD = 0x80, 0xC1
_log = logging.getLogger(__name__)


def event_file_bytes() -> bytes:
    """Return an event file that contains only the format version, as TensorBoard's writer starts one."""
    from tensorboard.compat.proto import event_pb2
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    data: bytes = event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString()
    length = struct.pack("<Q", len(data))
    checks = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
    return b"".join((length, checks[0], data, checks[1]))


def event_file_path(directory: Path) -> Path:
    """Return the path of this process's event file in a folder."""
    host = socket.gethostname()
    return directory / f"events.out.tfevents.{int(time.time()):010d}.{host}.{os.getpid()}.0"


def check_labels(labels: Mapping[str, Sequence[object]], rows: int) -> None:
    """Check that every label has one value per row.

    Raises:
        DataError: a label has another number of values.
    """
    for name, values in labels.items():
        if len(values) != rows:
            raise DataError(f"embeddings: label {name} has {len(values)} values, expected {rows}, one a row")


def metadata_text(labels: Mapping[str, Sequence[object]]) -> str:
    """Return metadata.tsv: one line per point, one column per label, and a header if there are several columns.

    The page reads the first line of a single-column file as a label. It ignores blank lines, which would
    shift all labels after them, so an empty label is written as "(empty)".
    """
    columns = [[_cell(value) for value in values] for values in labels.values()]
    lines = ["\t".join(row) for row in zip(*columns, strict=True)]
    if len(columns) > 1:
        lines.insert(0, "\t".join(_cell(name) for name in labels))
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    text = _BREAKS.sub(" ", str(value)).strip()
    return (text[: _LONGEST_LABEL - 1] + "…" if len(text) > _LONGEST_LABEL else text) or _EMPTY


def flat_points(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Convert each tensor to float32 [rows, values]; values beyond float32's range become infinite.

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
    """Return the names of tensors with a finite row, and a mask [rows] of rows that are finite in all of them.

    A tensor without any finite row is excluded, since no row of the others would remain.
    """
    masks = {name: np.isfinite(array).all(axis=1) for name, array in points.items()}
    alive = [name for name, mask in masks.items() if mask.any()]
    if not alive:
        return [], np.zeros(len(next(iter(points.values()))), dtype=bool)
    return alive, np.logical_and.reduce([masks[name] for name in alive])


def binary_points(points: Array) -> Array:
    """Return C-contiguous points of at least three values, with bytes that can't be read as text.

    If they could, the first value changes: 0.0 becomes -0.0, and another value moves by at most 128 units
    in the last place (a relative change of 1.5e-5).
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
        # A character that is cut at the end counts as text.
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


def write_snapshot(
    run_dir: Path,
    name: str,
    tensors: Mapping[str, Array],
    labels: Mapping[str, Sequence[object]] | None = None,
    *,
    step: int,
    sprites: Array | None = None,
) -> Path:
    """Write the folder `<run_dir>/embeddings/step_<step>`, which a running TensorBoard then shows.

    Rows with NaN or an infinity in any tensor are omitted, and so are tensors without a finite row. Their
    numbers are logged as a warning and kept in snapshot.json.

    Args:
        run_dir: folder of the run.
        name: name of the snapshot (`validation`); tensors are shown as `<name>/<tensor>@<step>`.
        tensors: real numbers by name, [row, ...] each; further axes are flattened.
        labels: values by column, one per row; None for no labels.
        step: optimizer step; an earlier snapshot of the same step is replaced.
        sprites: thumbnails, uint8 or float in [0, 1], [row, height, width(, channels)].

    Raises:
        DataError: shapes or dtypes do not fit, there are more than 100,000 rows, or no row is finite.
        OSError: the disk refused it; no snapshot appears.
    """
    if not tensors:
        raise DataError("embeddings: there is no tensor to show")
    points = flat_points(tensors)
    rows = len(next(iter(points.values())))
    if rows > MAX_ROWS:
        raise DataError(
            f"embeddings: {rows} rows, the Projector shows up to {MAX_ROWS}; give a sample of them"
        )
    if sprites is not None and len(sprites) != rows:
        raise DataError(f"embeddings: {len(sprites)} sprites, expected {rows}, one a row")
    alive, finite = finite_rows(points)
    if not finite.any():
        raise DataError(f"embeddings: none of the {rows} rows is finite in {', '.join(points)}")

    check_labels(labels or {}, rows)
    dropped = rows - int(finite.sum())
    left_out = [tensor for tensor in points if tensor not in alive]
    summary = {"step": step, "rows": rows - dropped, "dropped_rows": dropped, "left_out": left_out}

    named = dict(zip(_shown_names(name, alive, step), (points[tensor] for tensor in alive), strict=True))
    if dropped:
        named = {shown: array[finite] for shown, array in named.items()}
        labels = {column: _selected(values, finite) for column, values in (labels or {}).items()}
        sprites = None if sprites is None else sprites[finite]

    parent = Path(run_dir) / "embeddings"
    parent.mkdir(parents=True, exist_ok=True)
    _sweep(parent)
    work_dir = Path(tempfile.mkdtemp(prefix=".staged-", dir=parent))
    try:
        work_dir.chmod(0o755)
        _write_files(work_dir, named, labels, sprites)
        (work_dir / SUMMARY_NAME).write_text(json.dumps(summary, ensure_ascii=False) + "\n", encoding="utf-8")
        fsync_tree(work_dir)
        snapshot_dir = parent / f"step_{step}"
        _retire(snapshot_dir)
        work_dir.rename(snapshot_dir)
        fsync_dir(parent)
        write_bytes(event_file_path(snapshot_dir), event_file_bytes())
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)
    if dropped:
        _log.warning("embeddings at step %d: %d of %d rows omitted (NaN or infinite)", step, dropped, rows)
    if left_out:
        _log.warning("embeddings at step %d: %s omitted (no finite row)", step, ", ".join(left_out))
    return snapshot_dir


def prune_snapshots(run_dir: Path, keep: int) -> list[int]:
    """Remove all snapshots except the newest `keep`, and return their steps, ascending."""
    parent = Path(run_dir) / "embeddings"
    if not parent.is_dir():
        return []
    matches = [(_STEP.fullmatch(path.name), path) for path in parent.iterdir()]
    snapshots = sorted((int(match[1]), path) for match, path in matches if match)
    old = snapshots[: max(0, len(snapshots) - keep)]
    for _, path in old:
        _retire(path)
    return [step for step, _ in old]


def _write_files(
    work_dir: Path,
    points: Mapping[str, Array],
    labels: Mapping[str, Sequence[object]] | None,
    sprites: Array | None,
) -> None:
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import EmbeddingInfo, ProjectorConfig

    shared = EmbeddingInfo()
    if labels:
        shared.metadata_path = "metadata.tsv"
        text = metadata_text(labels)
        (work_dir / shared.metadata_path).write_bytes(text.encode("utf-8", errors="replace"))
    if sprites is not None:
        shared.sprite.image_path = "sprites.png"
        shared.sprite.single_image_dim.extend(write_sprites(work_dir / shared.sprite.image_path, sprites))
    config = ProjectorConfig()
    for index, (name, array) in enumerate(points.items()):
        values = binary_points(array)
        info = config.embeddings.add()
        info.CopyFrom(shared)
        info.tensor_name = name
        info.tensor_path = f"tensor_{index}.bytes"
        info.tensor_shape.extend(values.shape)
        with (work_dir / info.tensor_path).open("wb") as file:
            file.write(values.data)  # tofile has another message for a full disk
    (work_dir / CONFIG_NAME).write_text(text_format.MessageToString(config), encoding="utf-8")


def _selected(values: Sequence[object], finite: Array) -> Sequence[object]:
    return [value for value, kept in zip(values, finite.tolist(), strict=True) if kept]


def _shown_names(name: str, tensors: Sequence[str], step: int) -> list[str]:
    shown: list[str] = []
    for tensor in tensors:
        stem, count = _UNFIT.sub("_", f"{name}/{tensor}" if name else tensor), 1
        while (unique := f"{stem}@{step}" if count == 1 else f"{stem}_{count}@{step}") in shown:
            count += 1
        shown.append(unique)
    return shown


def _retire(snapshot_dir: Path) -> None:
    """Remove a snapshot, its event file first, so that TensorBoard never shows part of it."""
    if not snapshot_dir.exists():
        return
    for path in snapshot_dir.glob("events.out.tfevents.*"):
        path.unlink(missing_ok=True)
    (snapshot_dir / CONFIG_NAME).unlink(missing_ok=True)
    shutil.rmtree(snapshot_dir, ignore_errors=True)


def _sweep(parent: Path) -> None:
    for path in parent.glob(".staged-*"):
        try:
            age_s = time.time() - path.stat().st_mtime
        except FileNotFoundError:
            continue
        if age_s > _STALE_S:
            shutil.rmtree(path, ignore_errors=True)
