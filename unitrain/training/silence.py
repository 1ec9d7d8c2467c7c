"""Lightning without what it tells of devices, seeds and advice, for what is no training."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """A block in which Lightning tells neither devices nor advice."""
    names = ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric")
    before = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers", UserWarning)
        warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
        # Lightning calls jsonargparse by names that the latter has since replaced.
        warnings.filterwarnings(
            "ignore", category=DeprecationWarning, module=r"(pytorch_lightning|lightning|jsonargparse)\b"
        )
        warnings.filterwarnings(
            "ignore", r"\s*(.|\n)*(JsonargparseDeprecation|add_instantiator)", DeprecationWarning
        )
        for name in names:
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)
