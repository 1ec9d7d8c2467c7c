"""Loaders that are fast on data in memory and can go on in the middle of an epoch.

torch's DataLoader fetches samples one by one and collates them, and one that shuffles can't be resumed
to the bit; for arrays in memory, slicing whole batches by a permutation that is a function of seed
and epoch is both faster and resumable.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unitrain.errors import HookError

Transform = Callable[[Any, torch.Generator], Any]


class ArrayLoader:
    """Batches of arrays that are in memory.

    Epoch e's order is a permutation drawn from (seed, e) alone, so a run that goes on after a failure
    sees the batches that it would have seen. Lightning tells the epoch and keeps the position.

    Args:
        data: arrays or tensors of one length, [sample, ...]: a mapping or a tuple of them, or one; the
            batches have the same form. Arrays become tensors that share their memory.
        batch_size: samples a batch.
        shuffle: a new order each epoch.
        repeats: passes over the data that make one epoch, each in an order of its own; more than one is
            for small data with a `transform` that augments it.
        transform: `transform(batch, generator)` returns the batch as it is handed on; all its randomness
            must come from the generator, which is seeded by (seed, epoch, batch).
        drop_last: leave out a last batch that is not full.
        seed: of order and transform; default: `seed_everything`'s.

    Raises:
        HookError: no data, or arrays of different lengths.
    """

    def __init__(
        self,
        data: Any,
        *,
        batch_size: int,
        shuffle: bool = False,
        repeats: int = 1,
        transform: Transform | None = None,
        drop_last: bool = False,
        seed: int | None = None,
    ) -> None:
        if isinstance(data, Mapping):
            columns = list(data.values())
        else:
            columns = list(data) if isinstance(data, tuple | list) else [data]
        self._keys = list(data) if isinstance(data, Mapping) else None
        self._single = not isinstance(data, Mapping | tuple | list)
        self._columns = [torch.as_tensor(column) for column in columns]
        lengths = {len(column) for column in self._columns}
        if len(lengths) != 1 or 0 in lengths:
            raise HookError(
                f"ArrayLoader: expected arrays of one length above 0, got lengths {sorted(lengths)}"
            )
        if batch_size < 1 or repeats < 1:
            raise HookError(
                f"ArrayLoader: batch_size and repeats must be at least 1, got {batch_size} and {repeats}"
            )
        self.n_samples = lengths.pop()
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.repeats = repeats
        self.transform = transform
        self.drop_last = drop_last
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed
        self.epoch = 0
        self._position = 0  # batches of this epoch already given
        self._start = 0  # where the next iteration begins

    batch_sampler = None  # Lightning looks for one wherever there is a sampler

    @property
    def sampler(self) -> "ArrayLoader":
        """Itself: Lightning calls `set_epoch` on a loader's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration has."""
        self.epoch = epoch

    def __len__(self) -> int:
        per_rank = -(-self.n_samples * self.repeats // _world()[1])
        return per_rank // self.batch_size if self.drop_last else -(-per_rank // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        order = self._order()
        start, self._start = self._start, 0
        for index in range(start, len(self)):
            rows = slice(index * self.batch_size, (index + 1) * self.batch_size)
            batch = self._slice(rows if order is None else order[rows])
            if self.transform is not None:
                batch = self.transform(batch, self._generator(self.epoch, index + 1))
            self._position = index + 1
            yield batch
        self._position = len(self)

    def state_dict(self) -> dict[str, int]:
        """The position, for a checkpoint."""
        return {"epoch": self.epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a position; at an epoch's end the next iteration begins a new one."""
        self.epoch = state["epoch"]
        self._start = self._position = state["position"] if state["position"] < len(self) else 0

    def _generator(self, *keys: int) -> torch.Generator:
        seed = np.random.SeedSequence((self.seed, *keys)).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(seed) >> 1)

    def _order(self) -> Tensor | None:
        """The samples' indices in this epoch's order; None for all of them as they lie."""
        rank, world = _world()
        if self.shuffle:
            generator = self._generator(self.epoch)
            order = torch.cat(
                [torch.randperm(self.n_samples, generator=generator) for _ in range(self.repeats)]
            )
        elif world == 1 and self.repeats == 1:
            return None
        else:
            order = torch.arange(self.n_samples).repeat(self.repeats)
        if world > 1:
            # Every rank needs as many batches as the others: the last ones are filled from the front.
            order = torch.cat([order, order[: -len(order) % world]])[rank::world]
        return order

    def _slice(self, rows: Tensor | slice) -> Any:
        columns = [column[rows] for column in self._columns]
        if self._keys is not None:
            return dict(zip(self._keys, columns, strict=True))
        return columns[0] if self._single else tuple(columns)


def _world() -> tuple[int, int]:
    """(rank, number of processes) of a distributed training; (0, 1) in an ordinary one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
