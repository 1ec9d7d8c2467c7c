"""Folders of CSV files as windows: times, gaps, parts, labels, statistics, the cache, and what is said of errors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ROOT
from terminal import Terminal

from unitrain.datamodules.csv_files import data_path, find_files, read_rows
from unitrain.datamodules.csv_series import Columns, open_recording
from unitrain.datamodules.csv_windows import CsvWindows
from unitrain.errors import DataError

README = ROOT / "examples" / "signals_clustering" / "README.md"


def write_csv(
    path: Path, n_rows: int = 100, *, first: int = 0, gap_at: int | None = None, label: str = ""
) -> Path:
    """A file with a row a second: `a` counts rows from `first`, `b` is its negative, `activity` changes half way."""
    lines = ["timestamp,a,b" + (",activity" if label else "")]
    for row in range(n_rows):
        seconds = 1_700_000_000 + row + (60 if gap_at is not None and row >= gap_at else 0)
        time = str(np.datetime64(seconds, "s"))
        cells = [time, str(first + row), str(-first - row)]
        lines.append(",".join([*cells, f"{label}{int(row >= n_rows / 2)}"] if label else cells))
    path.write_text("\n".join(lines) + "\n")
    return path


def windows(folder: Path, **options: object) -> CsvWindows:
    small = {"n_steps": 10, "hop": 5, "cache": str(folder / ".cache")}
    return CsvWindows(str(folder), **(small | options))  # type: ignore[arg-type]


def test_windows_hold_consecutive_rows_and_their_times(tmp_path: Path) -> None:
    """80 of 100 rows make 15 training windows of 10 rows with a hop of 5, with first and last time as labels."""
    write_csv(tmp_path / "one.csv")
    data = windows(tmp_path)
    assert (data.n_channels, data.n_steps, data.channel_names) == (2, 10, ["a", "b"])
    assert len(data.train) == 15
    sample = data.train[3]
    assert np.array_equal(sample["signals"], [np.arange(15, 25), -np.arange(15, 25)])
    assert sample["signals"].dtype == np.float32
    assert (sample["start"], sample["stop"]) == ("2023-11-14T22:13:35.000", "2023-11-14T22:13:44.000")


def test_validation_is_the_end_of_each_file_and_shares_no_row(tmp_path: Path) -> None:
    """A training window of any file ends before that file's validation begins; test rows come last."""
    write_csv(tmp_path / "one.csv")
    write_csv(tmp_path / "two.csv", first=1000)
    data = windows(tmp_path, hop=1, validation_hop=1, validation_share=0.2, test_share=0.1)
    rows = [
        {int(v) for w in part for v in w["signals"][0]} for part in (data.train, data.validation, data.test)
    ]
    assert rows[0] == {*range(70), *range(1000, 1070)}
    assert rows[1] == {*range(70, 90), *range(1070, 1090)}
    assert rows[2] == {*range(90, 100), *range(1090, 1100)}


def test_whole_files_may_be_held_back(tmp_path: Path) -> None:
    """With patterns nothing is split by time."""
    for i, name in enumerate(("a1", "a2", "b1", "c1")):
        write_csv(tmp_path / f"{name}.csv", first=1000 * i)
    data = windows(tmp_path, validation_files="b*.csv", test_files="c*.csv")
    of = [
        {int(w["signals"][0, 0]) // 1000 for w in part} for part in (data.train, data.validation, data.test)
    ]
    assert of == [{0, 1}, {2}, {3}]
    assert len(data.train) == 2 * 19


@pytest.mark.parametrize("missing", [False, True])
def test_no_window_goes_across_a_gap_or_a_missing_value(tmp_path: Path, missing: bool) -> None:
    """A minute without rows, or a cell without a value, ends the windows before it."""
    path = write_csv(tmp_path / "one.csv", gap_at=None if missing else 33)
    if missing:
        lines = path.read_text().splitlines()
        lines[1 + 33] = lines[1 + 33].replace(",33,", ",,")
        path.write_text("\n".join(lines))
    data = windows(tmp_path, hop=1)
    spans = [(int(w["signals"][0, 0]), int(w["signals"][0, -1])) for w in data.train]
    assert all(stop - start == 9 for start, stop in spans)
    assert not any(start < 33 <= stop for start, stop in spans)
    assert any(stop == 32 for _, stop in spans)
    assert any(start == 33 + missing for start, _ in spans)
    if not missing:
        assert len(windows(tmp_path, hop=1, max_gap=100).train) == 71


def test_a_windows_label_is_its_most_frequent_text(tmp_path: Path) -> None:
    """Label columns are no channels; with half of the rows each the windows change over at row 50."""
    write_csv(tmp_path / "one.csv", label="walk")
    data = windows(tmp_path, labels=["activity"], hop=1)
    assert data.channel_names == ["a", "b"]
    labels = [window["activity"] for window in data.train]
    assert labels == ["walk0"] * 46 + ["walk1"] * 25
    batch = next(iter(data.val_dataloader()))
    assert batch["activity"] == ["walk1", "walk1"]


def test_statistics_are_those_of_the_training_rows(tmp_path: Path) -> None:
    """Means and deviations by channel, for large offsets too, and validation takes no part."""
    write_csv(tmp_path / "one.csv", first=1_000_000)
    data = windows(tmp_path)
    assert data.channel_means == pytest.approx([1_000_039.5, -1_000_039.5], abs=0.01)
    assert data.channel_stds == pytest.approx([np.arange(80).std()] * 2, rel=1e-4)


def test_loader_goes_on_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """From its state the batches are those that an uninterrupted epoch would have had."""
    write_csv(tmp_path / "one.csv", 300)
    whole, begun, resumed = (windows(tmp_path, batch_size=8).train_dataloader() for _ in range(3))
    for loader in (whole, begun):
        loader.set_epoch(2)
    expected = [batch["signals"] for batch in whole]
    batches = iter(begun)
    next(batches)
    next(batches)
    resumed.load_state_dict(begun.state_dict())
    rest = [batch["signals"] for batch in resumed]
    assert len(rest) == len(expected) - 2
    assert all(torch.equal(a, b) for a, b in zip(rest, expected[2:], strict=True))


def test_files_are_memory_mapped_and_read_again_only_when_they_changed(tmp_path: Path) -> None:
    """The second opening reads the cache; a changed file gives its new numbers."""
    path = write_csv(tmp_path / "one.csv")
    cache = tmp_path / "cache"
    first = open_recording(path, Columns(), cache)
    made = {p: p.stat().st_mtime_ns for p in cache.rglob("*")}
    assert isinstance(first.values, np.memmap)
    open_recording(path, Columns(), cache)
    assert {p: p.stat().st_mtime_ns for p in cache.rglob("*")} == made
    write_csv(path, 50, first=7)
    assert open_recording(path, Columns(), cache).values[0].tolist() == [7, -7]
    assert not list(cache.glob(".staging-*"))


def test_a_file_is_read_in_parts_of_bounded_size(tmp_path: Path) -> None:
    """Parts of 30 rows together are the file."""
    parts = list(read_rows(write_csv(tmp_path / "one.csv"), ["a"], at_once=30))
    assert [len(part.lines) for part in parts] == [30, 30, 30, 10]
    assert np.concatenate([part.numbers("a") for part in parts]).tolist() == list(range(100))


@pytest.mark.parametrize(
    "cell",
    ["2023-11-14T22:13:20.5", "2023-11-14 22:13:20.500", "2023-11-14T23:13:20.5+01:00", "1700000000.5"],
)
def test_times_are_understood_in_their_usual_forms(tmp_path: Path, cell: str) -> None:
    """ISO 8601 with and without a zone, and seconds since 1970, are one moment."""
    path = tmp_path / "one.csv"
    path.write_text(f"timestamp,a\n{cell},1\n")
    (rows,) = read_rows(path, ["timestamp"])
    assert rows.times_us("timestamp").tolist() == [1_700_000_000_500_000]


def test_times_of_another_form_are_told_by_it(tmp_path: Path) -> None:
    """`timestamp_format` is strptime's."""
    path = tmp_path / "one.csv"
    path.write_text("t;a\n14.11.2023 22:13:20;1\n")
    columns = Columns("t", delimiter=";", timestamp_format="%d.%m.%Y %H:%M:%S")
    assert open_recording(path, columns, tmp_path / "c").times_us.tolist() == [1_700_000_000_000_000]


@pytest.mark.parametrize(("form", "per_second"), [("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_loggers_count_in_finer_units_than_seconds(tmp_path: Path, form: str, per_second: int) -> None:
    """`timestamp_format` says so; without it a time after the year 9999 is no time."""
    path = tmp_path / "one.csv"
    path.write_text(f"timestamp,a\n{1_700_000_000 * per_second},1\n")
    (rows,) = read_rows(path, ["timestamp"])
    assert rows.times_us("timestamp", form).tolist() == [1_700_000_000_000_000]
    with pytest.raises(DataError, match="seconds since 1970, or a timestamp_format"):
        rows.times_us("timestamp")


def test_columns_without_a_name_are_no_channels(tmp_path: Path) -> None:
    """Such as the row numbers that pandas writes first, and what follows a comma at the end of each line."""
    path = write_csv(tmp_path / "one.csv")
    first, *rows = path.read_text().splitlines()
    numbered = [f"{number},{row}," for number, row in enumerate(rows)]
    path.write_text("\n".join([f",{first},", *numbered]))
    assert windows(tmp_path).channel_names == ["a", "b"]


def test_files_for_validation_need_not_fit_the_pattern_of_the_others(tmp_path: Path) -> None:
    """They are read all the same; files for the test alone are refused."""
    write_csv(tmp_path / "train.csv")
    write_csv(tmp_path / "later.csv", 30, first=500)
    data = windows(tmp_path, pattern="train.csv", validation_files="later.csv")
    assert float(data.validation[0]["signals"][0, 0]) == 500
    assert data.channel_means[0] == 49.5
    with pytest.raises(DataError, match="validation_files beside test_files"):
        windows(tmp_path, test_files="later.csv")


@pytest.mark.parametrize(
    ("line", "text", "told"),
    [
        (5, "2023-11-14T22:13:23,x,-3", "line 5, column a: expected a number, got 'x'"),
        (5, "yesterday,3,-3", "line 5, column timestamp: expected a time in ISO 8601"),
        (5, "2023-11-14T22:13:20,3,-3", "line 5, column timestamp: expected a later time"),
        (5, "2023-11-14T22:13:23,3", "line 5: expected 3 cells as in line 1, got 2"),
        (1, "time,a,b", "line 1: expected the columns timestamp, got time, a, b"),
        (1, "timestamp,a,a", "line 1: expected the names of the columns, each once, got 'a'"),
    ],
)
def test_errors_name_file_line_and_column(tmp_path: Path, line: int, text: str, told: str) -> None:
    """What is wrong in a file is found by an editor's line number."""
    path = write_csv(tmp_path / "one.csv")
    lines = path.read_text().splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"one\.csv") as error:
        windows(tmp_path)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"n_steps": 90}, "window of 90 rows"),
        ({"hop": 0}, "hop"),
        ({"validation_share": 1.0}, "validation_share"),
        ({"channels": ["a", "c"]}, "expected the columns c"),
        ({"pattern": "*.txt"}, "files named"),
        ({"delimiter": "\\t"}, "delimiter of one character"),
    ],
)
def test_settings_that_give_no_windows_are_told(
    tmp_path: Path, options: dict[str, object], told: str
) -> None:
    """Each names what was expected."""
    write_csv(tmp_path / "one.csv")
    with pytest.raises(DataError, match="expected") as error:
        windows(tmp_path, **options)
    assert told in str(error.value)


def test_files_with_other_channels_are_told(tmp_path: Path) -> None:
    """The second file's channels are compared with the first's."""
    write_csv(tmp_path / "one.csv")
    (tmp_path / "two.csv").write_text("timestamp,a,c\n1,1,1\n2,2,2\n")
    with pytest.raises(DataError, match=r"two.csv, line 1: expected the channels of one.csv, a, b, got a, c"):
        windows(tmp_path)


def test_a_channel_that_never_changes_is_told(tmp_path: Path) -> None:
    """It could not be standardised."""
    (tmp_path / "one.csv").write_text("timestamp,a,b\n" + "".join(f"{i},{i},5\n" for i in range(100)))
    with pytest.raises(DataError, match="b never does"):
        windows(tmp_path)


def test_packages_bring_folders_of_their_own() -> None:
    """`package:path` is a place in an installed package; one that is not installed is told."""
    (path,) = find_files("aeon:datasets/data/Daphnet_S06R02E0")
    assert path.name == "S06R02E0.csv"
    with pytest.raises(DataError, match="no_such_package is not installed"):
        data_path("no_such_package:data")


@pytest.mark.slow
def test_csv_files_are_trained_on_and_served(terminal: Terminal) -> None:
    """README's commands, a third of the epochs: codes of real recordings explain a third of their variance."""
    terminal.read(README, "--trainer.max_epochs 1", "--trainer.max_epochs 4")
    said = terminal.said("predict signals_clustering_csv")
    assert "74 windows from 1970-01-01T00:06:08" in said
    assert float(said.split("served ")[1].split(",")[0]) > 0.3
    assert "errors     0" in terminal.said("predict pretrained_signals")
