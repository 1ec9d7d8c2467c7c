"""What can't be shown is refused in a sentence, and nothing of it appears."""

import contextlib
import logging
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from time_limits import LIMIT_S

from unitrain.errors import DataError
from unitrain.projector import prune_snapshots, write_snapshot

CODE = np.ones((4, 3), "f4")


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tensors": {}}, "no tensor to show"),
        ({"tensors": {"code": np.zeros((0, 3))}}, r"code has shape \[0, 3\]"),
        ({"tensors": {"code": np.zeros((3, 0))}}, r"code has shape \[3, 0\]"),
        ({"tensors": {"code": np.array(3.0)}}, r"code has shape \[\]"),
        ({"tensors": {"code": np.array(["a"])}}, "code has dtype <U1, expected real numbers"),
        ({"tensors": {"code": np.ones(4, complex)}}, "code has dtype complex128"),
        ({"tensors": {"code": CODE, "x": CODE[:3]}}, "x has 3 rows, the others have 4"),
        ({"tensors": {"code": np.full((4, 3), np.nan)}}, "none of the 4 rows is finite in code"),
        (
            {"tensors": {"code": np.zeros((100_001, 1), "f4")}},
            "100001 rows, the Projector shows up to 100000",
        ),
        ({"labels": {"class": [1, 2]}}, "label class has 2 values, expected 4"),
        ({"sprites": np.zeros((3, 2, 2), np.uint8)}, "3 sprites, expected 4"),
        ({"sprites": np.zeros((4, 2), np.uint8)}, r"sprites have shape \[4, 2\]"),
        ({"sprites": np.zeros((4, 2, 2, 2), np.uint8)}, r"sprites have shape \[4, 2, 2, 2\]"),
        ({"sprites": np.zeros((4, 2, 2), int)}, "sprites have dtype int64"),
    ],
)
def test_misfits_are_named(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    """The tensor, what was expected and what was got; no snapshot and no staged folder is left."""
    given = {"tensors": {"code": CODE}} | arguments
    with pytest.raises(DataError, match=message):
        write_snapshot(tmp_path, "validation", step=1, **given)
    assert not list(tmp_path.glob("embeddings/*")) + list(tmp_path.glob("embeddings/.*"))


def test_a_folder_becomes_a_run_only_when_it_is_whole(tmp_path: Path) -> None:
    """TensorBoard reads a run's config once: what is not there with the event file is never shown."""
    whole = {"projector_config.pbtxt", "metadata.tsv", "tensor_0.bytes", "tensor_1.bytes"}
    ended, halves, seen = threading.Event(), [], set()

    def watch() -> None:
        while not ended.is_set():
            with contextlib.suppress(FileNotFoundError):  # a folder is just being renamed or replaced
                for event_file in tmp_path.glob("embeddings/*/events.out.tfevents.*"):
                    seen.add(event_file)
                    names = names_in(event_file.parent)
                    if event_file.name in names and not whole <= set(names):
                        halves.append(names)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        tensors = {"code": np.ones((5000, 16)), "x": np.ones((5000, 64))}
        for step in [*range(8), *range(8)]:
            write_snapshot(tmp_path, "", tensors, {"row": range(5000)}, step=step)
    finally:
        ended.set()
        watcher.join()
    assert halves == []
    assert len(seen) > 4


def test_the_given_arrays_are_not_changed(tmp_path: Path) -> None:
    """The guard against text perturbs a copy."""
    zeros = np.zeros((4, 3), "<f4")
    write_snapshot(tmp_path, "", {"code": zeros}, step=1)
    assert not np.signbit(zeros).any()


def test_nothing_is_said_where_nothing_was_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A warning at every validation would soon be read by nobody."""
    with caplog.at_level(logging.WARNING):
        write_snapshot(tmp_path, "", {"code": CODE}, step=1)
    assert caplog.records == []


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Files of this process can't grow past 64 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_the_earlier_snapshot(tmp_path: Path) -> None:
    """The system's error comes through, and what was there stays whole."""
    kept = write_snapshot(tmp_path, "", {"code": CODE}, step=1)
    files = names_in(kept)
    with pytest.raises(OSError, match="File too large"):
        write_snapshot(tmp_path, "", {"code": np.ones((1000, 100))}, step=1)
    assert names_in(tmp_path / "embeddings") == ["step_1"]
    assert names_in(kept) == files


def test_what_a_killed_writer_left_is_swept_after_an_hour(tmp_path: Path) -> None:
    """A younger one may still be written to."""
    old, young = (tmp_path / "embeddings" / f".staged-{name}" for name in ("old", "young"))
    old.mkdir(parents=True)
    young.mkdir()
    os.utime(old, (time.time() - 7200,) * 2)
    write_snapshot(tmp_path, "", {"code": CODE}, step=1)
    assert names_in(tmp_path / "embeddings") == [".staged-young", "step_1"]


def test_pruning_leaves_other_folders_alone(tmp_path: Path) -> None:
    """Only snapshots count and go; nothing there is nothing to do."""
    assert prune_snapshots(tmp_path, 1) == []
    (tmp_path / "embeddings" / "mine").mkdir(parents=True)
    write_snapshot(tmp_path, "", {"code": CODE}, step=1)
    assert prune_snapshots(tmp_path, 1) == []
    assert prune_snapshots(tmp_path, 0) == [1]
    assert names_in(tmp_path / "embeddings") == ["mine"]


def test_a_snapshot_needs_no_torch(tmp_path: Path) -> None:
    """`predict` writes them, too."""
    program = """
import sys
sys.modules["torch"] = sys.modules["tensorflow"] = None  # importing them fails
import numpy as np
from pathlib import Path
from unitrain.projector import write_snapshot
write_snapshot(Path(sys.argv[1]), "served", {"code": np.ones((4, 3))}, {"row": range(4)}, step=1,
               sprites=np.ones((4, 2, 2)))
"""
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True, timeout=LIMIT_S)
    assert (tmp_path / "embeddings" / "step_1" / "sprites.png").is_file()
