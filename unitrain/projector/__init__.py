"""numpy arrays as TensorBoard's Embedding Projector shows them."""

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
