"""numpy arrays as TensorBoard's Embedding Projector shows them."""

from unitrain.projector.snapshot import MAX_ROWS, prune_snapshots, write_snapshot

__all__ = ["MAX_ROWS", "prune_snapshots", "write_snapshot"]
