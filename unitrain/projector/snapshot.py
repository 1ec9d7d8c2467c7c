"""One snapshot of embeddings, in a run folder of its own.

TensorBoard reads the Projector's configs again only when the set of runs changes, and a folder becomes a
run by its event file. So everything else is there, whole, before the event file appears; and each snapshot
is a run of its own, or a running TensorBoard would never show it.
"""

import json
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from unitrain.durable import fsync_dir, fsync_tree, write_bytes
from unitrain.errors import DataError
from unitrain.projector.events import event_file_bytes, event_file_path
from unitrain.projector.labels import check_labels, metadata_text
from unitrain.projector.points import Array, binary_points, finite_rows, flat_points
from unitrain.projector.sprites import write_sprites

MAX_ROWS = 100_000
"""The page asks for no more."""

CONFIG_NAME = "projector_config.pbtxt"
SUMMARY_NAME = "snapshot.json"

_STEP = re.compile(r"step_([0-9]+)")
_STALE_S = 3600.0
# The page puts names into its requests as they are: no character that means something in a URL.
_UNFIT = re.compile(r"[^\w.@/\[\]()-]+")
_log = logging.getLogger(__name__)


def write_snapshot(
    run_dir: Path,
    name: str,
    tensors: Mapping[str, Array],
    labels: Mapping[str, Sequence[object]] | None = None,
    *,
    step: int,
    sprites: Array | None = None,
) -> Path:
    """The folder `<run_dir>/embeddings/step_<step>`, which a running TensorBoard shows from then on.

    Rows with NaN or an infinity in any tensor are left out of all, and so are tensors that have no other
    rows; how many is logged as a warning and kept in snapshot.json.

    Args:
        run_dir: the run's folder.
        name: of the snapshot (`validation`); tensors appear as `<name>/<tensor>@<step>`.
        tensors: real numbers, rows first; further axes are flattened.
        labels: values by column, as many as there are rows; None: none.
        step: the optimizer step; an earlier snapshot of the same step is replaced.
        sprites: a thumbnail a row: uint8, or float in [0, 1], [rows, height, width(, channels)].

    Raises:
        DataError: shapes or dtypes do not fit, there are more than 100,000 rows, or none that is finite.
        OSError: the disk refused; nothing appears.
    """
    if not tensors:
        raise DataError("embeddings: there is no tensor to show")
    points = flat_points(tensors)
    rows = len(next(iter(points.values())))
    if rows > MAX_ROWS:
        raise DataError(
            f"embeddings: {rows} rows, the Projector shows at most {MAX_ROWS}; give a sample of them"
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
        _log.warning("embeddings at step %d: %d of %d rows left out (NaN or infinite)", step, dropped, rows)
    if left_out:
        _log.warning("embeddings at step %d: %s left out (no finite row)", step, ", ".join(left_out))
    return snapshot_dir


def prune_snapshots(run_dir: Path, keep: int) -> list[int]:
    """The steps whose snapshots were removed, ascending; the newest `keep` stay."""
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
            file.write(values.data)  # tofile has its own words for a full disk
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
    """Remove a snapshot so that TensorBoard sees it whole or not: first it stops being a run."""
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
