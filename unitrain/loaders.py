"""Loaders with a reproducible order that can resume in the middle of an epoch; fast for data in memory.

torch's DataLoader fetches and collates single samples, and can't resume a shuffled epoch to the bit. Here the order
is a function of seed and epoch, and the position is stored in checkpoints.
torchdata's StatefulDataLoader keeps the state of its generators instead, which ties a checkpoint to the
number of workers.
"""

import functools
import itertools
import os
import random
import types
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.random.mtrand import get_bit_generator, set_bit_generator
from torch import Tensor
from torch.utils.data import DataLoader

from unitrain.errors import HookError

Transform = Callable[[Any, torch.Generator], Any]
Planned = tuple[tuple[int, ...], list[int]]
"""Seed of a batch's random numbers, and its samples."""

Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random

MOST_PARTS, DEEPEST_PART, WIDEST_PART = 4096, 6, 256
"""Limits of the search for generators in a data set: objects in all, nesting, and items of one list."""
_WITHOUT_GENERATORS = (
    str, bytes, int, float, complex, bool, type(None), np.ndarray, np.generic, Tensor, type, types.ModuleType,
    types.FunctionType, types.BuiltinFunctionType,
)  # fmt: skip

GATHERED_BYTES = 1 << 17
"""Rows are put in order for several batches at once, which makes a batch cheaper; as many as a cache holds."""


class MapDataset(Protocol):
    """Data set that is indexed by sample number."""

    def __getitem__(self, index: int, /) -> Any: ...

    def __len__(self) -> int: ...


class ResumableLoader:
    """Base class of the loaders: order, position, shares of distributed processes.

    Epoch e's order is a permutation drawn from (seed, e) alone, so a resumed run gets the
    batches of an uninterrupted run. Lightning sets the epoch and stores the position. In a distributed
    training every process has its share of each epoch, of the same number of batches.

    Args:
        n_samples: number of samples in the data.
        batch_size: samples a batch (a process).
        shuffle: a new order each epoch.
        repeats: number of times that an epoch repeats the data, each in another order.
        drop_last: skip an incomplete last batch.
        seed: seed for the order; None: the value of `seed_everything`.

    Raises:
        HookError: no samples, or a batch_size or repeats below 1.
    """

    batch_sampler = None  # Lightning looks for one wherever there is a sampler

    def __init__(
        self,
        n_samples: int,
        *,
        batch_size: int,
        shuffle: bool,
        repeats: int,
        drop_last: bool,
        seed: int | None,
    ) -> None:
        if n_samples < 1 or batch_size < 1 or repeats < 1:
            raise HookError(
                f"{type(self).__name__}: samples, batch_size and repeats must be at least 1, got {n_samples}, "
                f"{batch_size} and {repeats}"
            )
        self.n_samples = n_samples
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.repeats = repeats
        self.drop_last = drop_last
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed
        self.epoch = 0
        self._position = 0  # batches of this epoch already given
        self._start = 0  # where the next iteration begins
        self.ahead = 0  # batches that were given, but wait to be used: they are no part of the position

    @property
    def sampler(self) -> "ResumableLoader":
        """Itself: Lightning calls `set_epoch` on a loader's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration has; one that is new begins at its first batch."""
        if epoch != self.epoch:
            self.epoch = epoch
            self._position = self._start = 0

    def __len__(self) -> int:
        per_process = -(-self.n_samples * self.repeats // _world()[1])
        return per_process // self.batch_size if self.drop_last else -(-per_process // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        # The body of a generator begins at the first batch: after Lightning has set epoch and position.
        start, self._start = self._start, 0
        for index, batch in enumerate(self._batches(start), start=start + 1):
            self._position = index
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The position, for a checkpoint."""
        return {"epoch": self.epoch, "position": max(0, self._position - self.ahead)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume at a position; at an epoch's end the next iteration begins a new one."""
        self.epoch = state["epoch"]
        self._start = self._position = state["position"] if state["position"] < len(self) else 0

    def _batches(self, start: int) -> Iterator[Any]:
        """This epoch's batches from the `start`-th on."""
        raise NotImplementedError

    def _order(self) -> Tensor | None:
        """This process's samples in this epoch's order, int64; None for all of them in stored order."""
        rank, world = _world()
        if self.shuffle:
            generator = seeded_generator(self.seed, self.epoch)
            order = torch.cat(
                [torch.randperm(self.n_samples, generator=generator) for _ in range(self.repeats)]
            )
        elif world == 1 and self.repeats == 1:
            return None
        else:
            order = torch.arange(self.n_samples).repeat(self.repeats)
        if world > 1:
            # Every process needs as many batches as the others: the last ones are filled from the front.
            short = -len(order) % world
            order = torch.cat([order, order.repeat(-(-short // len(order)))[:short]])[rank::world]
        return order


class ArrayLoader(ResumableLoader):
    """Load batches from arrays in memory.

    Example:
        >>> loader = ArrayLoader({"x": np.arange(5.0)}, batch_size=2)
        >>> [batch["x"].tolist() for batch in loader]
        [[0.0, 1.0], [2.0, 3.0], [4.0]]

    Args:
        data: arrays or tensors of one length, [sample, ...]: a mapping or a tuple of them, or one; the
            batches have the same form. Arrays become tensors that share their memory, and so do the batches
            where there is neither shuffle nor transform: don't change those in place.
        batch_size: samples a batch.
        shuffle: a new order each epoch.
        repeats: number of times that an epoch repeats the data; above 1 for small data with a
            `transform` that augments it.
        transform: `transform(batch, generator)` returns the batch as it is handed on; all its randomness
            must come from the generator, which is seeded by (seed, epoch, batch).
        drop_last: skip an incomplete last batch.
        seed: seed for order and transform; None: the value of `seed_everything`.

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
        if len(lengths) != 1:
            raise HookError(f"ArrayLoader: expected arrays of one length, got lengths {sorted(lengths)}")
        super().__init__(
            lengths.pop(),
            batch_size=batch_size,
            shuffle=shuffle,
            repeats=repeats,
            drop_last=drop_last,
            seed=seed,
        )
        self.transform = transform

    @property
    def columns(self) -> list[Tensor]:
        """All the data, [sample, ...] each."""
        return self._columns

    def _batches(self, start: int) -> Iterator[Any]:
        transform, generator = self.transform, torch.Generator()
        for index, columns in enumerate(self._slices(start), start=start + 1):
            batch = self._form(columns)
            if transform is not None:
                batch = transform(batch, generator.manual_seed(mixed_seed((self.seed, self.epoch, index))))
            yield batch

    def _slices(self, start: int) -> Iterator[tuple[Tensor, ...]]:
        """The columns of this epoch's batches from the `start`-th on."""
        order, size, stop = self._order(), self.batch_size, len(self)
        if order is None and self.transform is not None:
            order = torch.arange(self.n_samples)  # it may change a batch in place: not the data themselves
        sample_bytes = sum(column[:1].nbytes for column in self._columns)
        at_once = max(1, GATHERED_BYTES // max(1, size * sample_bytes))
        for first in range(start, stop, at_once):
            rows = slice(first * size, min(first + at_once, stop) * size)
            if order is None:
                gathered = [column[rows] for column in self._columns]
            else:
                chosen = order[rows]
                gathered = [column.index_select(0, chosen) for column in self._columns]
            yield from zip(*(torch.split(column, size) for column in gathered), strict=True)

    def _form(self, columns: tuple[Tensor, ...]) -> Any:
        if self._keys is not None:
            return dict(zip(self._keys, columns, strict=True))
        return columns[0] if self._single else columns


class DatasetLoader(ResumableLoader):
    """Load batches from a map-style data set sample by sample, by worker processes if requested.

    Example:
        >>> loader = DatasetLoader([1.0, 2.0, 3.0], batch_size=2)
        >>> [batch.tolist() for batch in loader]
        [[1.0, 2.0], [3.0]]

    Before each batch is fetched, torch's, numpy's and Python's random numbers are seeded by (seed, epoch,
    batch), and so are generators that the data set keeps in its attributes: augmentation is the same
    whatever the number of workers, and after a resume in mid-epoch. The generators of the training process
    are left as they were.

    Args:
        dataset: has `__getitem__` and `__len__`.
        batch_size: samples a batch.
        shuffle: a new order each epoch.
        num_workers: processes that fetch; 0: this one.
        drop_last: skip an incomplete last batch.
        seed: seed for order and samples; None: the value of `seed_everything`.
        options: further ones of torch.utils.data.DataLoader: collate_fn, pin_memory, prefetch_factor, ...

    Raises:
        HookError: the data set is empty.
    """

    def __init__(
        self,
        dataset: MapDataset,
        *,
        batch_size: int,
        shuffle: bool = False,
        num_workers: int = 0,
        drop_last: bool = False,
        seed: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            len(dataset), batch_size=batch_size, shuffle=shuffle, repeats=1, drop_last=drop_last, seed=seed
        )
        self._todo: list[Planned] = []
        options = {"persistent_workers": num_workers > 0} | options
        self._loader: DataLoader[Any] = DataLoader(
            _SeededDataset(dataset, in_worker=num_workers > 0),  # type: ignore[arg-type]
            batch_sampler=_Todo(self._todo),  # type: ignore[arg-type]
            num_workers=num_workers,
            generator=torch.Generator(),  # else every epoch would draw from the training's random numbers
            **options,
        )

    def _batches(self, start: int) -> Iterator[Any]:
        order, rank = self._order(), _world()[0]
        indices = list(range(self.n_samples)) if order is None else order.tolist()
        size = self.batch_size
        self._todo[:] = [
            ((self.seed, self.epoch, i + 1, rank), indices[i * size : (i + 1) * size])
            for i in range(start, len(self))
        ]
        yield from self._loader


class _Todo:
    """The batches that are still to come, as a batch sampler."""

    def __init__(self, todo: list[Planned]) -> None:
        self._todo = todo

    def __iter__(self) -> Iterator[Planned]:
        return iter(self._todo)

    def __len__(self) -> int:
        return len(self._todo)


class _SeededDataset:
    """Data set of batches, whose randomness is a function of the planned keys."""

    def __init__(self, dataset: MapDataset, *, in_worker: bool) -> None:
        self._dataset = dataset
        self._in_worker = in_worker
        self._bits = np.random.MT19937()  # numpy's global generator while a batch is fetched
        self._own = OwnGenerators(dataset)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        return self._dataset[index]

    def __getitems__(self, planned: Planned) -> list[Any]:
        keys, indices = planned
        if self._in_worker:
            return self._fetch(keys, indices)
        before = torch.get_rng_state(), random.getstate(), get_bit_generator()
        try:
            set_bit_generator(self._bits)  # far cheaper than numpy's get_state and set_state
            return self._fetch(keys, indices)
        finally:
            torch.set_rng_state(before[0])
            random.setstate(before[1])
            set_bit_generator(before[2])

    def _fetch(self, keys: tuple[int, ...], indices: list[int]) -> list[Any]:
        _seed_all(*keys)
        self._own.seed(keys, epoch=keys[1])
        return fetch_samples(self._dataset, indices)


def fetch_samples(dataset: MapDataset, indices: list[int]) -> list[Any]:
    """The samples of a batch, by the data set's own `__getitems__` if it has one."""
    whole = getattr(dataset, "__getitems__", None)  # some of torch's data sets have it
    return list(whole(indices)) if whole else [dataset[index] for index in indices]


class OwnGenerators:
    """The random generators that an object keeps for itself, in its attributes and those of its parts.

    Seeding them before each batch makes what they draw a function of seed, epoch and batch, as for the
    global generators. Two objects whose generators began differently draw differently: `salt` is what they
    began with.

    Args:
        owner: a data set, a sampler, or parts of a module.
        apart: kinds of parts that are not looked into.
    """

    def __init__(self, owner: Any, apart: tuple[type, ...] = ()) -> None:
        self._owner, self._apart = owner, apart
        self._found = own_generators(owner, apart)
        self._epoch: int | None = None
        self.salt = salt_of(self._found)

    def seed(self, keys: tuple[int, ...], epoch: int) -> None:
        """Seed each of them by the keys; an object may have made further ones, so each epoch looks again."""
        if epoch != self._epoch:
            self._epoch, self._found = epoch, own_generators(self._owner, self._apart)
        for place, generator in enumerate(self._found):
            reseed(generator, mixed_seed((*keys, self.salt, place)))


def own_generators(owner: Any, apart: tuple[type, ...] = ()) -> list[Generator]:
    """The generators in an object's attributes, in a fixed order; without the global ones of torch, numpy and Python."""
    found: list[Generator] = []
    seen: set[int] = {id(random._inst), id(np.random.mtrand._rand), id(torch.default_generator)}  # noqa: SLF001
    waiting: list[tuple[Any, int]] = [(owner, 0)]
    while waiting and len(seen) < MOST_PARTS:
        part, depth = waiting.pop(0)
        if id(part) in seen or isinstance(part, _WITHOUT_GENERATORS + apart):
            continue
        seen.add(id(part))
        if isinstance(part, Generator):
            found.append(part)
        elif depth < DEEPEST_PART:
            waiting += [(inner, depth + 1) for inner in _parts(part)]
    return found


def _parts(part: Any) -> list[Any]:
    if isinstance(part, dict):
        inner = list(itertools.islice(part.values(), WIDEST_PART))
    elif isinstance(part, list | tuple):
        inner = list(part[:WIDEST_PART])
    else:
        inner = [getattr(part, "__self__", None), *getattr(part, "__dict__", {}).values()]
        if isinstance(part, functools.partial):
            inner += [part.func, *part.args, *part.keywords.values()]
    return inner


def reseed(generator: Generator, seed: int) -> None:
    """Put a generator of torch, numpy or Python where a seed of 63 bits puts it."""
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    elif isinstance(generator, np.random.Generator):
        bits = generator.bit_generator
        bits.state = type(bits)(seed).state
    else:
        generator.seed(seed % 2**32)


def salt_of(generators: list[Generator]) -> int:
    """Return a number that distinguishes generators by their seeds."""
    return zlib.crc32(b"".join(map(_began_with, generators)))


def _began_with(generator: Generator) -> bytes:
    if isinstance(generator, torch.Generator):
        return str(generator.initial_seed()).encode()
    if isinstance(generator, np.random.Generator):
        entropy = getattr(generator.bit_generator.seed_seq, "entropy", None)
        # The system's own entropy, 128 bits, is another one in each process: no distinction is possible.
        return str(entropy if isinstance(entropy, int) and entropy < 1 << 64 else None).encode()
    if isinstance(generator, random.Random):
        return str(generator.getstate()).encode()
    state: Any = generator.get_state()
    return str(state[1].tolist()).encode()


def seeded_generator(*keys: int) -> torch.Generator:
    """A generator whose numbers are a function of the keys."""
    return torch.Generator().manual_seed(mixed_seed(keys))


def mixed_seed(keys: Sequence[int]) -> int:
    """A seed of 63 bits that is a function of the keys."""
    return int(np.random.SeedSequence(tuple(keys)).generate_state(1, np.uint64)[0]) >> 1


def _seed_all(*keys: int) -> None:
    seed = mixed_seed(keys)
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the generator that users' data sets draw from
    random.seed(seed)


def _world() -> tuple[int, int]:
    """(rank, number of processes) of a distributed training; (0, 1) in an ordinary one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
