"""Training and validation loaders of any kind, made a function of seed and epoch, with a position to resume from.

A loader of torch's keeps its data set, sampler, workers and options. Before each batch is fetched, in a
worker or not, the random generators are seeded by (seed, epoch, batch), and so are those that data set and
sampler keep for themselves. A resumed run draws the same order, skips what was trained on, and fetches
the rest.
"""

# ruff: noqa: SLF001 - much of Lightning's loops and of torch's loaders has no public name

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
from unitrain.training.callbacks.step_seeding import Clock, seed_process

_ORDER, _FETCH = 1, 2
_DRAWN_AT_ONCE = 64
"""Batches whose samples are drawn together, where the sampler is torch's own and can't depend on the training."""
_TORCHS_OWN = (
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    DistributedSampler,
)


class Planned(NamedTuple):
    """A batch that is still to be fetched: what seeds it, the epoch, and its samples."""

    keys: tuple[int, ...]
    indices: Any


def replay_loaders(trainer: Trainer, clock: Clock) -> None:
    """Make each loader that this trainer sets up a function of the clock; does nothing where nothing is seeded."""
    if clock.seed is None:
        return
    process: Callable[[Any], Any] = trainer.strategy.process_dataloader

    def processed(loader: Any) -> Any:
        clock.loaders += 1
        return replayed(process(loader), clock, clock.loaders)

    trainer.strategy.process_dataloader = processed  # type: ignore[method-assign, assignment]


def replayed(loader: Any, clock: Clock, place: int = 0) -> Any:
    """The loader itself where it resumes by its own state, else one over the same data that replays.

    Args:
        place: tells this loader's random numbers apart from those of others.
    """
    if isinstance(loader, ResumableLoader | Replayed) or is_stateful(loader):
        return loader
    if isinstance(loader, DataLoader) and _is_plain(type(loader)):
        clone = _like(loader, _replayed_class(type(loader)))  # type: ignore[arg-type]
        clone.begin(clock, place)
        return clone
    return ReplayedIterable(loader, clock, place)


def is_stateful(loader: Any) -> bool:
    """Whether a loader keeps its own position."""
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def _like(loader: Any, kind: type) -> Any:
    """An object of another class with the loader's attributes."""
    made: Any = object.__new__(kind)
    made.__dict__.update(loader.__dict__)
    return made


def _is_plain(kind: type) -> bool:
    return all(getattr(kind, name) is getattr(DataLoader, name) for name in ("__iter__", "_get_iterator"))


class Replayed:
    """A loader's rounds: which one it is in, and the position in it.

    Attributes:
        ahead: batches that were given, but wait to be used: they are no part of the position.
    """

    _clock: Clock
    ahead = 0

    def begin(self, clock: Clock, place: int) -> None:
        self.__dict__.update(
            _clock=clock, _place=place, _round=None, _pass=0, _resume=None, _given=deque([(0, 0)], maxlen=4)
        )

    def __iter__(self) -> Iterator[Any]:
        # A generator: it begins at the first batch, after epoch and position are known.
        own = self.__dict__
        start = 0
        if own["_resume"] is not None and own["_resume"][0] == self._clock.round:
            own["_round"], own["_pass"], start = own["_resume"]
        elif own["_round"] == self._clock.round:
            own["_pass"] += 1
        else:
            own["_round"], own["_pass"] = self._clock.round, 0
        own["_resume"] = None
        own["_given"].append((own["_pass"], start))
        keys = (int(self._clock.seed or 0), *own["_round"], own["_place"], own["_pass"], _rank())
        for position, batch in enumerate(self.batches(keys, start), start=start + 1):
            own["_given"].append((own["_pass"], position))
            self._clock.reseed()  # fetching may have drawn in this process
            yield batch

    def forget(self) -> None:
        """Let the next iteration be the round's first, though another had begun."""
        self.__dict__["_round"] = None

    def batches(self, keys: tuple[int, ...], start: int) -> Iterator[Any]:
        """This round's batches from the `start`-th on."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The position, for a checkpoint."""
        given = self.__dict__["_given"]
        done, position = given[-1 - min(self.ahead, len(given) - 1)]
        return {
            "round": list(self.__dict__["_round"] or ()),
            "pass": done,
            "position": position,
            "salts": self.salts(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a position; in another round the position is without a meaning."""
        self.__dict__["_resume"] = tuple(state["round"]), state["pass"], state["position"]
        self.take_salts(state["salts"])

    def salts(self) -> list[int]:
        """What the generators of data set and sampler began with."""
        return []

    def take_salts(self, salts: list[int]) -> None:
        """Let those generators begin with what an earlier process had."""


class ReplayedIterable(Replayed):
    """Any iterable that gives batches; what it draws from the global generators, or keeps as attributes, is seeded."""

    def __init__(self, loader: Any, clock: Clock, place: int) -> None:
        self._loader = loader
        self._own = OwnGenerators(loader)
        self.begin(clock, place)

    @property
    def kind(self) -> str:
        """Its class's name."""
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

    def take_salts(self, salts: list[int]) -> None:
        [self._own.salt] = salts


class ReplayedDataLoader(Replayed):
    """A DataLoader of torch's, whose samples are drawn and fetched by what was planned."""

    @property
    def _iterator(self) -> Any:
        """That of the loader that does the work: Lightning ends its workers by it."""
        inner = self.__dict__.get("_inner")
        return None if inner is None else inner._iterator

    @_iterator.setter
    def _iterator(self, iterator: Any) -> None:
        if self.__dict__.get("_inner") is not None:
            self.__dict__["_inner"]._iterator = iterator

    def begin(self, clock: Clock, place: int) -> None:
        super().begin(clock, place)
        self.__dict__.pop("_iterator", None)
        self.__dict__.update(_inner=None, _salts=None, _data_own=OwnGenerators(self.__dict__["dataset"]).salt)

    def batches(self, keys: tuple[int, ...], start: int) -> Iterator[Any]:
        inner, plan, data = self._made()
        inner.generator.manual_seed(mixed_seed(keys))  # the seed that torch gives its workers
        if isinstance(data, _SeededStream):
            data.arm(keys)
            if inner.num_workers:
                yield from itertools.islice(iter(inner), start, None)
            else:
                seed_process(*keys, 0)
                yield from _fetched(iter(inner), keys, start)
        else:
            plan.arm(keys, start)
            yield from inner

    def _made(self) -> Any:
        """The loader that does the work, made when it is first needed: options may change until then."""
        own = self.__dict__
        if own["_inner"] is None:
            salt = own["_salts"][0] if own["_salts"] else own["_data_own"]
            inner = _like(self, type(self).__bases__[1])
            for name in (
                "_clock",
                "_place",
                "_round",
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
            plan = _Plan(own["batch_sampler"] if own["batch_sampler"] is not None else own["sampler"])
            inner.__dict__.update(dataset=data, generator=torch.Generator(), _iterator=None)
            if kind is _SeededSamples:
                inner.__dict__["batch_sampler" if own["batch_sampler"] is not None else "sampler"] = plan
            if own["_salts"]:
                plan.own.salt = own["_salts"][1]
            own["_inner"], own["_plan"] = inner, plan
        return own["_inner"], own["_plan"], own["_inner"].dataset

    def salts(self) -> list[int]:
        own = self.__dict__
        return [own["_salts"][0] if own["_salts"] else own["_data_own"], self._made()[1].own.salt]

    def take_salts(self, salts: list[int]) -> None:
        self.__dict__["_salts"] = list(salts)
        self.__dict__["_inner"] = None  # its workers would have begun with others


@cache
def _replayed_class(kind: type) -> Any:
    return type(f"Replayed{kind.__name__}", (ReplayedDataLoader, kind), {})


class _Plan:
    """A sampler's batches, drawn by seeds, each with what its fetching is seeded by."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self.own = OwnGenerators(sampler)
        self._keys: tuple[int, ...] = ()
        self._start = 0
        inner = sampler.sampler if type(sampler) is BatchSampler else sampler
        self._at_once = _DRAWN_AT_ONCE if type(inner) in _TORCHS_OWN else 1

    def arm(self, keys: tuple[int, ...], start: int) -> None:
        self._keys, self._start = keys, start

    def __iter__(self) -> Iterator[Planned]:
        keys, start = self._keys, self._start
        seed_process(*keys, _ORDER)
        self.own.seed((*keys, _ORDER), hash(keys))
        iterator = iter(self._sampler)
        for first in itertools.count(0, self._at_once):
            seed_process(*keys, _ORDER, first)
            drawn = list(itertools.islice(iterator, self._at_once))
            for place, indices in enumerate(drawn, start=first):
                if place >= start:
                    yield Planned((*keys, _FETCH, place), indices)
            if len(drawn) < self._at_once:
                return

    def __len__(self) -> int:
        return len(self._sampler)


class _Wrapped:
    """Hands attributes through to the data set: workers' set-up code reads and sets them."""

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


class _SeededSamples(_Wrapped):
    """A map-style data set, asked for what was planned."""

    def __getitem__(self, planned: Planned) -> Any:
        self.seed(planned.keys)
        return self.__dict__["_dataset"][planned.indices]

    def __getitems__(self, planned: Planned) -> list[Any]:
        self.seed(planned.keys)
        return fetch_samples(self.__dict__["_dataset"], planned.indices)


class _SeededStream(_Wrapped):
    """An iterable data set; workers that stay from epoch to epoch read what to seed by from shared memory."""

    def __init__(self, dataset: Any, salt: int) -> None:
        super().__init__(dataset, salt)
        self.__dict__["_keys"] = torch.zeros(16, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def arm(self, keys: tuple[int, ...]) -> None:
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
    """Batches that are fetched in this process, each seeded; those before `start` are fetched and dropped."""
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
