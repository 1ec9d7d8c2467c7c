"""Which process of a distributed training this is."""

from pytorch_lightning.utilities import rank_zero_only


def process_rank() -> int:
    """0 in the main process, and in an ordinary training; known before any process group is made."""
    return int(getattr(rank_zero_only, "rank", 0))
