"""Training and validation loaders with an order that is a function of seed and epoch, and that resume mid-epoch.

A DataLoader of torch's keeps its data set, sampler, workers and options. Before each batch is fetched, in a
worker or not, the global random generators are seeded by (seed, epoch, batch). The generators that are attributes
of data set and sampler are seeded in the same way. A resumed run draws the same order, skips the batches that
were used, and fetches the rest.
"""

# ruff: noqa: SLF001 - much of torch's loaders has no public name

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from pytorch_lightning import Trainer
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)
from torch.utils.data.distributed import DistributedSampler

from unitrain.loaders import OwnGenerators, ResumableLoader, fetch_samples, mixed_seed
from unitrain.training.callbacks.step_seeding import StepSeeder, seed_process

_ORDER, _FETCH = 1, 2
_SAMPLER_CHUNK = 64
"""Batches drawn at once from torch's own samplers, which can't depend on the training."""
_TORCH_SAMPLERS = (
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    DistributedSampler,
)


class SeededIndices(NamedTuple):
    """Indices of a batch's samples, with the keys that seed their fetching."""

    keys: tuple[int, ...]
    indices: Any


def replay_loaders(trainer: Trainer, seeder: StepSeeder) -> None:
    """Seed each loader that a trainer sets up; do nothing if `step_seeding` is off."""
    if seeder.seed is None:
        return
    process: Callable[[Any], Any] = trainer.strategy.process_dataloader

    def processed(loader: Any) -> Any:
        seeder.loader_count += 1
        return replayed_loader(process(loader), seeder, seeder.loader_count)

    trainer.strategy.process_dataloader = processed  # type: ignore[method-assign, assignment]


def replayed_loader(loader: Any, seeder: StepSeeder, place: int = 0) -> Any:
    """Return a loader over the same data that replays; the loader itself if it keeps its own position.

    Args:
        loader: any iterable of batches.
        seeder: seeder of the training's steps.
        place: number of the loader, one of its seeds.
    """
    if isinstance(loader, ResumableLoader | ReplayedLoader) or is_stateful(loader):
        return loader
    if isinstance(loader, DataLoader) and _is_plain(type(loader)):
        clone = _like(loader, _replayed_class(type(loader)))  # type: ignore[arg-type]
        clone.begin(seeder, place)
        return clone
    return ReplayedIterable(loader, seeder, place)


def is_stateful(loader: Any) -> bool:
    """Return True if a loader keeps its own position."""
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def _like(loader: Any, kind: type) -> Any:
    """Return an object of another class with the loader's attributes."""
    made: Any = object.__new__(kind)
    made.__dict__.update(loader.__dict__)
    return made


def _is_plain(kind: type) -> bool:
    return all(getattr(kind, name) is getattr(DataLoader, name) for name in ("__iter__", "_get_iterator"))


class ReplayedLoader:
    """Base of the loaders that replay: they know their epoch and their position in it.

    Each validation counts as an epoch of its loaders. A loader that is iterated several times in an epoch
    counts these passes.

    Attributes:
        ahead: number of batches that were fetched but not used yet; they do not count for the position.
    """

    _seeder: StepSeeder
    ahead = 0

    def begin(self, seeder: StepSeeder, place: int) -> None:
        self.__dict__.update(
            _seeder=seeder,
            _place=place,
            _epoch_key=None,
            _pass=0,
            _resume=None,
            _given=deque([(0, 0)], maxlen=4),
        )

    def __iter__(self) -> Iterator[Any]:
        # This generator starts at the first batch, when epoch and position are known.
        own = self.__dict__
        start = 0
        if own["_resume"] is not None and own["_resume"][0] == self._seeder.epoch_key:
            own["_epoch_key"], own["_pass"], start = own["_resume"]
        elif own["_epoch_key"] == self._seeder.epoch_key:
            own["_pass"] += 1
        else:
            own["_epoch_key"], own["_pass"] = self._seeder.epoch_key, 0
        own["_resume"] = None
        own["_given"].append((own["_pass"], start))
        keys = (int(self._seeder.seed or 0), *own["_epoch_key"], own["_place"], own["_pass"], _rank())
        for position, batch in enumerate(self.batches(keys, start), start=start + 1):
            own["_given"].append((own["_pass"], position))
            self._seeder.reseed()  # fetching may have drawn in this process
            yield batch

    def restart_epoch(self) -> None:
        """Make the next iteration the first pass of its epoch."""
        self.__dict__["_epoch_key"] = None

    def batches(self, keys: tuple[int, ...], start: int) -> Iterator[Any]:
        """Yield the batches of this pass from number `start` on."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the position, for a checkpoint."""
        given = self.__dict__["_given"]
        done, position = given[-1 - min(self.ahead, len(given) - 1)]
        return {
            "round": list(self.__dict__["_epoch_key"] or ()),
            "pass": done,
            "position": position,
            "salts": self.salts(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a position; it is ignored in another epoch."""
        self.__dict__["_resume"] = tuple(state["round"]), state["pass"], state["position"]
        self.load_salts(state["salts"])

    def salts(self) -> list[int]:
        """Return the initial seeds of the generators of data set and sampler."""
        return []

    def load_salts(self, salts: list[int]) -> None:
        """Start those generators with the seeds of an earlier process."""


class ReplayedIterable(ReplayedLoader):
    """Any iterable of batches; the global generators and those in its attributes are seeded."""

    def __init__(self, loader: Any, seeder: StepSeeder, place: int) -> None:
        self._loader = loader
        self._own = OwnGenerators(loader)
        self.begin(seeder, place)

    @property
    def kind(self) -> str:
        """Name of its class."""
        return type(self._loader).__name__

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._loader, name)

    def batches(self, keys: tuple[int, ...], start: int) -> Iterator[Any]:
        seed_process(*keys, 0)
        self._own.seed(keys, hash(keys))
        yield from _fetched(iter(self._loader), keys, start)

    def salts(self) -> list[int]:
        return [self._own.salt]

    def load_salts(self, salts: list[int]) -> None:
        [self._own.salt] = salts


class ReplayedDataLoader(ReplayedLoader):
    """DataLoader whose samples are drawn and fetched with seeded generators."""

    @property
    def _iterator(self) -> Any:
        """Iterator of the inner loader, by which Lightning stops its workers."""
        inner = self.__dict__.get("_inner")
        return None if inner is None else inner._iterator

    @_iterator.setter
    def _iterator(self, iterator: Any) -> None:
        if self.__dict__.get("_inner") is not None:
            self.__dict__["_inner"]._iterator = iterator

    def begin(self, seeder: StepSeeder, place: int) -> None:
        super().begin(seeder, place)
        self.__dict__.pop("_iterator", None)
        self.__dict__.update(_inner=None, _salts=None, _data_own=OwnGenerators(self.__dict__["dataset"]).salt)

    def batches(self, keys: tuple[int, ...], start: int) -> Iterator[Any]:
        inner, sampler, data = self._inner_loader()
        inner.generator.manual_seed(mixed_seed(keys))  # torch seeds its workers from it
        if isinstance(data, _SeededStream):
            data.set_keys(keys)
            if inner.num_workers:
                yield from itertools.islice(iter(inner), start, None)
            else:
                seed_process(*keys, 0)
                yield from _fetched(iter(inner), keys, start)
        else:
            sampler.set_keys(keys, start)
            yield from inner

    def _inner_loader(self) -> Any:
        """Return the inner loader, its sampler and its data set; the first use creates them, with the options then."""
        own = self.__dict__
        if own["_inner"] is None:
            salt = own["_salts"][0] if own["_salts"] else own["_data_own"]
            inner = _like(self, type(self).__bases__[1])
            for name in (
                "_seeder",
                "_place",
                "_epoch_key",
                "_pass",
                "_resume",
                "_given",
                "_inner",
                "_salts",
                "_data_own",
            ):
                inner.__dict__.pop(name, None)
            kind = _SeededStream if isinstance(own["dataset"], IterableDataset) else _SeededSamples
            data = kind(own["dataset"], salt)
            sampler = _SeededSampler(
                own["batch_sampler"] if own["batch_sampler"] is not None else own["sampler"]
            )
            inner.__dict__.update(dataset=data, generator=torch.Generator(), _iterator=None)
            if kind is _SeededSamples:
                inner.__dict__["batch_sampler" if own["batch_sampler"] is not None else "sampler"] = sampler
            if own["_salts"]:
                sampler.own.salt = own["_salts"][1]
            own["_inner"], own["_seeded_sampler"] = inner, sampler
        return own["_inner"], own["_seeded_sampler"], own["_inner"].dataset

    def salts(self) -> list[int]:
        own = self.__dict__
        return [own["_salts"][0] if own["_salts"] else own["_data_own"], self._inner_loader()[1].own.salt]

    def load_salts(self, salts: list[int]) -> None:
        self.__dict__["_salts"] = list(salts)
        self.__dict__["_inner"] = None  # its workers have the old seeds


@cache
def _replayed_class(kind: type) -> Any:
    return type(f"Replayed{kind.__name__}", (ReplayedDataLoader, kind), {})


class _SeededSampler:
    """Sampler with seeded draws, which yields indices with the keys that seed their fetching."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self.own = OwnGenerators(sampler)
        self._keys: tuple[int, ...] = ()
        self._start = 0
        inner = sampler.sampler if type(sampler) is BatchSampler else sampler
        self._chunk = _SAMPLER_CHUNK if type(inner) in _TORCH_SAMPLERS else 1

    def set_keys(self, keys: tuple[int, ...], start: int) -> None:
        self._keys, self._start = keys, start

    def __iter__(self) -> Iterator[SeededIndices]:
        keys, start = self._keys, self._start
        seed_process(*keys, _ORDER)
        self.own.seed((*keys, _ORDER), hash(keys))
        iterator = iter(self._sampler)
        for first in itertools.count(0, self._chunk):
            seed_process(*keys, _ORDER, first)
            drawn = list(itertools.islice(iterator, self._chunk))
            for place, indices in enumerate(drawn, start=first):
                if place >= start:
                    yield SeededIndices((*keys, _FETCH, place), indices)
            if len(drawn) < self._chunk:
                return

    def __len__(self) -> int:
        return len(self._sampler)


class _SeededDataset:
    """Data set with seeded generators; attributes are the data set's own, for the set-up code of workers."""

    def __init__(self, dataset: Any, salt: int) -> None:
        self.__dict__.update(_dataset=dataset, _salt=salt, _own=None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_dataset" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["_dataset"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["_dataset"], name, value)

    def __len__(self) -> int:
        return len(self.__dict__["_dataset"])

    def seed(self, keys: tuple[int, ...]) -> None:
        seed_process(*keys)
        self.seed_own(keys)

    def seed_own(self, keys: tuple[int, ...]) -> None:
        own = self.__dict__["_own"]
        if own is None:
            own = self.__dict__["_own"] = OwnGenerators(self.__dict__["_dataset"])
            own.salt = self.__dict__["_salt"]
        own.seed(keys, epoch=keys[2])


class _SeededSamples(_SeededDataset):
    """Map-style data set that seeds the generators before it fetches samples."""

    def __getitem__(self, seeded: SeededIndices) -> Any:
        self.seed(seeded.keys)
        return self.__dict__["_dataset"][seeded.indices]

    def __getitems__(self, seeded: SeededIndices) -> list[Any]:
        self.seed(seeded.keys)
        return fetch_samples(self.__dict__["_dataset"], seeded.indices)


class _SeededStream(_SeededDataset):
    """Iterable data set; persistent workers read the keys of the epoch from shared memory."""

    def __init__(self, dataset: Any, salt: int) -> None:
        super().__init__(dataset, salt)
        self.__dict__["_keys"] = torch.zeros(16, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def set_keys(self, keys: tuple[int, ...]) -> None:
        shared = self.__dict__["_keys"]
        shared[0] = len(keys)
        shared[1 : 1 + len(keys)] = torch.tensor(keys)

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        shared = self.__dict__["_keys"].tolist()
        keys = tuple(shared[1 : 1 + shared[0]])
        if worker is not None:
            self.seed((*keys, worker.id))
        else:
            self.seed_own(keys)
        return iter(self.__dict__["_dataset"])


def _fetched(iterator: Iterator[Any], keys: tuple[int, ...], start: int) -> Iterator[Any]:
    """Fetch batches in this process, each with its seed, and drop those before number `start`."""
    for place in itertools.count():
        seed_process(*keys, _FETCH, place)
        try:
            batch = next(iterator)
        except StopIteration:
            return
        if place >= start:
            yield batch


def _rank() -> int:
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
