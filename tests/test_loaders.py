"""The loaders: order by seed and epoch, position, sharding, and the same samples whatever the workers."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

import unitrain.loaders
from unitrain.errors import HookError
from unitrain.loaders import ArrayLoader, DatasetLoader


class Noisy(Dataset):
    """Samples that draw from every generator that people use."""

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "index": index,
            "torch": torch.rand(()).item(),
            "numpy": np.random.random(),  # noqa: NPY002
            "python": random.random(),
        }


def rows(loader: Any) -> list[int]:
    """The samples' numbers in the order in which they come."""
    return [int(i) for batch in loader for i in (batch["index"] if isinstance(batch, dict) else batch)]


def loaders(**options: Any) -> list[Any]:
    """Both kinds over 23 samples."""
    return [
        ArrayLoader({"index": np.arange(23)}, batch_size=4, **options),
        DatasetLoader(Noisy(), batch_size=4, **options),
    ]


@pytest.mark.parametrize("kind", [0, 1])
def test_epoch_is_a_permutation_by_seed_and_epoch(kind: int) -> None:
    """Every sample once; the same again for the same epoch, another order for another epoch or seed."""
    loader = loaders(shuffle=True, seed=5)[kind]
    first = rows(loader)
    assert sorted(first) == list(range(23))
    assert rows(loader) == first
    loader.set_epoch(1)
    assert rows(loader) != first
    assert rows(loaders(shuffle=True, seed=6)[kind]) != first
    assert rows(loaders(shuffle=True, seed=5)[kind]) == first


def test_both_loaders_have_the_same_order() -> None:
    """A person may change from one to the other without changing the training's order."""
    a, b = loaders(shuffle=True, seed=5)
    assert rows(a) == rows(b)


@pytest.mark.parametrize("kind", [0, 1])
def test_state_goes_on_in_mid_epoch_and_begins_anew_at_its_end(kind: int) -> None:
    """A new loader with the state gives what is left; a state at the end is a new epoch."""
    loader = loaders(shuffle=True, seed=5)[kind]
    loader.set_epoch(3)
    iterator = iter(loader)
    seen = [int(i) for _ in range(2) for i in next(iterator)["index"]]
    other = loaders(shuffle=True, seed=5)[kind]
    other.load_state_dict(loader.state_dict())
    assert seen + rows(other) == rows(other)
    assert other.state_dict() == {"epoch": 3, "position": 6}
    last = loaders(shuffle=True, seed=5)[kind]
    last.load_state_dict(other.state_dict())
    assert len(rows(last)) == 23


@pytest.mark.parametrize("kind", [0, 1])
def test_processes_share_an_epoch_in_batches_of_one_number(
    kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together all samples, each process as many batches as the other."""
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(unitrain.loaders, "_world", lambda rank=rank: (rank, 2))
        loader = loaders(shuffle=True, seed=5)[kind]
        shares.append(rows(loader))
        assert len(loader) == 3
    assert set(shares[0]) | set(shares[1]) == set(range(23))
    assert len(shares[0]) == len(shares[1]) == 12


def test_samples_draw_the_same_whatever_the_workers_and_the_position() -> None:
    """Workers 0 and 2, and a resume in mid-epoch: the same augmentation of the same sample."""

    def drawn(workers: int, skip: int = 0) -> dict[int, tuple[float, float, float]]:
        loader = DatasetLoader(Noisy(), batch_size=4, shuffle=True, seed=1, num_workers=workers)
        loader.set_epoch(2)
        loader.load_state_dict({"epoch": 2, "position": skip})
        found = {}
        for batch in loader:
            for i, *values in zip(
                batch["index"], batch["torch"], batch["numpy"], batch["python"], strict=True
            ):
                found[int(i)] = tuple(map(float, values))
        return found

    whole = drawn(0)
    assert len(whole) == 23
    assert drawn(2) == whole
    part = drawn(2, skip=3)
    assert len(part) == 11
    assert all(whole[index] == values for index, values in part.items())
    assert len({v for values in whole.values() for v in values}) == 3 * 23  # and different from one another


def test_fetching_leaves_the_trainings_random_numbers_alone() -> None:
    """Without workers too."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    rows(DatasetLoader(Noisy(), batch_size=4, shuffle=True, seed=1))
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_batches_have_the_form_of_the_data() -> None:
    """A mapping, a tuple, one array; without a copy where nothing is shuffled."""
    x = torch.arange(10.0)
    [first, *_] = ArrayLoader({"a": x, "b": np.arange(10)}, batch_size=4)
    assert set(first) == {"a", "b"}
    assert first["a"].data_ptr() == x.data_ptr()
    [pair, *_] = ArrayLoader((x, x), batch_size=4)
    assert isinstance(pair, tuple)
    [one, *_] = ArrayLoader(x, batch_size=4)
    assert one.tolist() == [0, 1, 2, 3]


def test_transform_draws_from_a_generator_by_seed_epoch_and_batch() -> None:
    """The same epoch gives the same augmentation, also from the middle on."""

    def noisy(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return batch + torch.rand(batch.shape, generator=generator)

    loader = ArrayLoader(torch.zeros(12), batch_size=4, transform=noisy, seed=3)
    whole = list(loader)
    loader.load_state_dict({"epoch": 0, "position": 1})
    assert all(torch.equal(a, b) for a, b in zip(whole[1:], loader, strict=True))
    loader.set_epoch(1)
    assert not torch.equal(next(iter(loader)), whole[0])


def test_repeats_and_drop_last_set_the_length() -> None:
    """Three passes of ten samples in batches of four."""
    loader = ArrayLoader(torch.arange(10), batch_size=4, repeats=3, shuffle=True)
    assert [len(loader), sum(len(b) for b in loader)] == [8, 30]
    dropping = ArrayLoader(torch.arange(10), batch_size=4, repeats=3, shuffle=True, drop_last=True)
    assert [len(dropping), sum(len(b) for b in dropping)] == [7, 28]


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ({"a": [1, 2], "b": [1]}, {}),
        (np.zeros(0), {}),
        (np.zeros(3), {"batch_size": 0}),
        (np.zeros(3), {"repeats": 0}),
    ],
)
def test_unfit_data_is_refused(data: Any, options: dict[str, int]) -> None:
    """Lengths, batch size and repeats are named."""
    with pytest.raises(HookError, match="ArrayLoader"):
        ArrayLoader(data, **({"batch_size": 2} | options))


def test_transform_in_place_leaves_the_data_alone() -> None:
    """A batch that is handed to a transform is its own, also where nothing is shuffled."""
    data = torch.zeros(12)
    loader = ArrayLoader(data, batch_size=4, transform=lambda batch, _generator: batch.add_(1))
    assert [batch.tolist() for batch in loader] == [[1.0] * 4] * 3
    assert not data.any()


def test_another_epoch_begins_at_its_first_batch() -> None:
    """A position belongs to its epoch: one that was broken off is not gone on with in the next."""
    loader = ArrayLoader(torch.arange(12), batch_size=4)
    loader.load_state_dict({"epoch": 0, "position": 2})
    loader.set_epoch(0)
    assert loader.state_dict()["position"] == 2
    loader.set_epoch(1)
    assert len(rows(loader)) == 12


def test_fewer_samples_than_processes_still_give_each_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one would wait for the others for ever."""
    for rank in range(5):
        monkeypatch.setattr(unitrain.loaders, "_world", lambda rank=rank: (rank, 5))
        loader = ArrayLoader(torch.arange(2), batch_size=4, shuffle=True, seed=0)
        assert len(rows(loader)) == len(loader) == 1


def test_large_batches_come_one_by_one() -> None:
    """Rows are put in order for several batches at once only as far as they are small; none is lost at the seams."""
    wide = torch.arange(100_000.0).reshape(100, 1000)
    loader = ArrayLoader(wide, batch_size=7, shuffle=True, seed=2)
    narrow = ArrayLoader(wide[:, :1], batch_size=7, shuffle=True, seed=2)
    batches = list(loader)
    assert [len(batch) for batch in batches] == [7] * 14 + [2]
    assert all(torch.equal(a[:, :1], b) for a, b in zip(batches, narrow, strict=True))
