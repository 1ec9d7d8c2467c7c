"""Old versions go, and never one that a server may be using."""

import os
import time
from collections.abc import Callable

import pytest

from unitrain.repository import Repository, changed_config, read_config, write_config_text


@pytest.fixture
def aged(repository: Repository, publish: Callable[[], int]) -> Repository:
    """Eight versions of `codes`, all two minutes old."""
    for _ in range(8):
        _age(repository, publish(), 120)
    return repository


def _age(repository: Repository, number: int, age_s: float) -> None:
    moment = time.time() - age_s
    os.utime(repository.version_dir("codes", number), (moment, moment))


def test_prune_keeps_the_newest(aged: Repository) -> None:
    """The oldest are removed, their numbers are told, and nothing of them stays in staging."""
    assert aged.prune("codes", 5, num_versions=2) == [1, 2, 3]
    assert aged.versions("codes") == [4, 5, 6, 7, 8]
    assert {p.name for p in (aged.staging_dir / "codes").iterdir()} == {"lock", "counter", "config.pbtxt"}


def test_prune_never_keeps_fewer_than_are_served_and_two(aged: Repository) -> None:
    """Triton serves num_versions, and may be loading two more."""
    aged.prune("codes", 1, num_versions=3)
    assert aged.versions("codes") == [4, 5, 6, 7, 8]


def test_prune_spares_the_young(aged: Repository) -> None:
    """A version under a minute old may just be being loaded, as may one from a clock that ran ahead."""
    _age(aged, 2, 30)
    _age(aged, 3, -3600)
    assert aged.prune("codes", 4, num_versions=2) == [1, 4]
    assert aged.versions("codes") == [2, 3, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        ({"specific": {"versions": [1, 3]}}, [1, 3, 5, 6, 7, 8]),
        ({"latest": {"num_versions": 4}}, [3, 4, 5, 6, 7, 8]),
        ({"all": {}}, [1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_prune_spares_what_the_edited_config_serves(aged: Repository, policy: dict, kept: list[int]) -> None:
    """A person's own version policy counts, not the settings alone."""
    path = aged.config_path("codes")
    path.write_text(write_config_text(changed_config(read_config(path), {"version_policy": policy})))
    aged.prune("codes", 1, num_versions=2)
    assert aged.versions("codes") == kept


def test_a_new_version_is_young(repository: Repository, publish: Callable[[], int]) -> None:
    """Right after publishing nothing is removed, however many there are."""
    for _ in range(6):
        publish()
    assert repository.prune("codes", 1, num_versions=1) == []


def test_pruning_what_is_not_there_removes_nothing(repository: Repository) -> None:
    """No repository, no model: nothing to do, and nothing is made."""
    assert repository.prune("codes", 1, num_versions=1) == []
    assert not repository.staging_dir.exists()
