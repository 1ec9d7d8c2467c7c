"""Snapshots for TensorBoard's Embedding Projector, written with numpy alone.

rows → `StableSample` (a fixed number of them) → arrays, labels, `draw_thumbnails` → `write_snapshot` → run folder
"""

from unitrain.projector.sampling import StableSample, group_numbers
from unitrain.projector.snapshot import MAX_ROWS, prune_snapshots, write_snapshot
from unitrain.projector.thumbnails import draw_thumbnails, thumbnail_index

__all__ = [
    "MAX_ROWS",
    "StableSample",
    "draw_thumbnails",
    "group_numbers",
    "prune_snapshots",
    "thumbnail_index",
    "write_snapshot",
]
