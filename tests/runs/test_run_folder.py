"""A run's folder is made once, owned by one process, and always tells how it stands."""

import json
import multiprocessing
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from unitrain.errors import RunError, UsageError
from unitrain.runs import RunFolder, list_runs

OWNER = """
import sys, time
from pathlib import Path
from unitrain.runs import RunFolder
run = RunFolder.create(Path(sys.argv[1]), "curve")
run.update(status="running")
print(run.path, flush=True)
time.sleep(120)
"""


def test_a_new_run_has_a_folder_named_by_time_and_slug(tmp_path: Path) -> None:
    """It lies in its experiment's folder, and its record says that it is starting."""
    run = RunFolder.create(tmp_path / "experiments", "curve", "hidden=64")
    assert run.path.parent == tmp_path / "experiments" / "curve"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_hidden=64", run.name)
    record = json.loads(run.record_path.read_text())
    assert record["status"] == "starting"
    assert (record["experiment"], record["name"]) == ("curve", run.name)
    assert datetime.fromisoformat(record["started_at"]).utcoffset() is not None


def test_starts_in_one_second_get_folders_of_their_own(tmp_path: Path) -> None:
    """Several threads at once, and processes: no folder is shared, none is lost."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        names = pool.starmap(_create_often, [(tmp_path, 5)] * 2)
    together = [name for part in names for name in part]
    assert len(set(together)) == 10
    assert {path.name for path in (tmp_path / "curve").iterdir()} == set(together)


def _create_often(experiments_dir: Path, times: int) -> list[str]:
    return [RunFolder.create(experiments_dir, "curve", "a").name for _ in range(times)]


def test_listed_oldest_first_whatever_their_suffix(tmp_path: Path) -> None:
    """`-10` comes after `-9`: the newest is last."""
    runs = [RunFolder.create(tmp_path, "curve") for _ in range(12)]
    assert [run.name for run in list_runs(tmp_path)] == [run.name for run in runs]


@pytest.mark.parametrize(
    ("slug", "shown"),
    [
        ("a/b c", "a-b-c"),
        ("lr=1e+3", "lr=1e3"),
        ("../..", ""),
        ("größe=3", "größe=3"),
        ("x" * 500, "x" * 120),
    ],
)
def test_a_slug_becomes_a_name_that_files_and_pages_can_carry(tmp_path: Path, slug: str, shown: str) -> None:
    """No slash, and no `+`, which TensorBoard's Projector would ask for as a blank."""
    name = RunFolder.create(tmp_path, "curve", slug).name
    assert name[len("2000-01-01_00-00-00") :] == (f"_{shown}" if shown else "")


@pytest.mark.parametrize("experiment", ["", ".hidden", "a/b", "..", "a\nb", " a", "a&b", "x" * 200])
def test_an_experiment_that_no_folder_can_be_named_after_is_refused(tmp_path: Path, experiment: str) -> None:
    """In one line, before anything is made."""
    with pytest.raises(UsageError, match="experiment: expected a folder's name") as caught:
        RunFolder.create(tmp_path / "experiments", experiment)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "experiments").exists()


def test_blanks_and_unicode_in_paths_work(tmp_path: Path) -> None:
    """The folder of the experiments and the experiment's name may have them."""
    run = RunFolder.create(tmp_path / "meine Läufe 日本", "erste Ähre")
    run.close("finished", "es ist gut")
    assert [(r.experiment, r.status) for r in list_runs(tmp_path / "meine Läufe 日本")] == [
        ("erste Ähre", "finished")
    ]


@pytest.mark.parametrize("parent", ["/proc", "file"])
def test_an_unwritable_place_is_refused_with_the_cause(tmp_path: Path, parent: str) -> None:
    """One sentence with the path and the option to change."""
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"no run folder can be made in .*experiments_dir"):
        RunFolder.create(tmp_path / parent / "experiments", "curve")


def test_updates_are_on_the_disk_at_once(tmp_path: Path) -> None:
    """Another process reads them while the run goes on; NaN is written as null."""
    run = RunFolder.create(tmp_path, "curve")
    run.update(status="running", epoch=3, metrics={"val_loss": float("nan")})
    run.append("published", {"version": 1})
    run.append("published", {"version": 2})
    seen = RunFolder.open(run.path).record()
    assert (seen["epoch"], seen["metrics"]) == (3, {"val_loss": None})
    assert seen["published"] == [{"version": 1}, {"version": 2}]


def test_updates_from_two_threads_are_all_kept(tmp_path: Path) -> None:
    """The publishing worker appends while the training thread updates."""
    run = RunFolder.create(tmp_path, "curve")
    threads = [threading.Thread(target=run.append, args=("published", {"version": n})) for n in range(8)]
    for thread in threads:
        thread.start()
    run.update(epoch=1)
    for thread in threads:
        thread.join()
    record = json.loads(run.record_path.read_text())
    assert sorted(entry["version"] for entry in record["published"]) == list(range(8))
    assert record["epoch"] == 1


def test_a_closed_run_is_let_go_with_its_reason(tmp_path: Path) -> None:
    """Another may own it then; the first can no longer change it."""
    run = RunFolder.create(tmp_path, "curve")
    run.close("stopped", "no improvement")
    record = run.record()
    assert (record["status"], record["reason"]) == ("stopped", "no improvement")
    assert record["ended_at"] >= record["started_at"]
    RunFolder.open(run.path, own=True)
    with pytest.raises(RunError, match="not owned"):
        run.update(epoch=1)


def test_a_reader_can_not_change_a_run(tmp_path: Path) -> None:
    """Only its owner writes the record."""
    run = RunFolder.create(tmp_path, "curve")
    with pytest.raises(RunError, match="not owned"):
        RunFolder.open(run.path).update(epoch=1)


def test_a_discarded_run_leaves_nothing(tmp_path: Path) -> None:
    """Nor the experiment's folder, when it was made for it."""
    RunFolder.create(tmp_path, "curve").discard()
    assert list(tmp_path.iterdir()) == []


def test_discarding_spares_other_runs_and_what_was_there_before(tmp_path: Path) -> None:
    """A resumed run that is refused keeps its folder, and is only let go."""
    kept = RunFolder.create(tmp_path, "curve")
    RunFolder.create(tmp_path, "curve").discard()
    kept.close("interrupted", "SIGTERM")
    RunFolder.open(kept.path, own=True).discard()
    assert [run.status for run in list_runs(tmp_path)] == ["interrupted"]
    RunFolder.open(kept.path, own=True)


def test_a_run_in_use_is_refused_and_its_holder_named(tmp_path: Path) -> None:
    """Until the holder dies: then the run was killed, and can be owned."""
    command = [sys.executable, "-c", OWNER, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        path = Path(owner.stdout.readline().strip())
        assert [run.status for run in list_runs(tmp_path)] == ["running"]
        with pytest.raises(RunError, match=f"in use by process {owner.pid}@"):
            RunFolder.open(path, own=True)
        owner.send_signal(signal.SIGKILL)
    assert [run.status for run in list_runs(tmp_path)] == ["killed"]
    again = RunFolder.open(path, own=True)
    again.update(status="running")
    assert [run.status for run in list_runs(tmp_path)] == ["running"]


def test_a_folder_without_a_record_is_no_run(tmp_path: Path) -> None:
    """Said with what would have made it one."""
    with pytest.raises(RunError, match=r"has no run\.json"):
        RunFolder.open(tmp_path)


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Files of this process can't grow past 4 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_keeps_the_earlier_record(tmp_path: Path) -> None:
    """The record stays whole, the error has the reason, and the run is let go all the same."""
    run = RunFolder.create(tmp_path, "curve")
    with pytest.raises(RunError, match="File too large; the earlier one is kept"):
        run.update(note="x" * 10_000)
    assert json.loads(run.record_path.read_text())["status"] == "starting"
    with pytest.raises(RunError):
        run.close("failed", "x" * 10_000)
    RunFolder.open(run.path, own=True)
