"""Runs are listed as they stand, found by what a person types, and compared."""

from pathlib import Path

import pytest

from unitrain.errors import RunError
from unitrain.runs import RunFolder, compare_runs, find_run, list_runs, read_summary


def _finished(
    experiments_dir: Path, experiment: str = "curve", settings: str = "", **fields: object
) -> RunFolder:
    run = RunFolder.create(experiments_dir, experiment)
    run.settings_path.write_text(settings)
    run.update(status="running", **fields)
    run.close("finished", "max_epochs")
    return run


def test_no_folder_is_no_run(tmp_path: Path) -> None:
    """An empty list rather than an error."""
    assert list_runs(tmp_path / "experiments") == []


def test_a_file_in_the_folders_place_is_an_error(tmp_path: Path) -> None:
    """Said in a sentence with its path."""
    (tmp_path / "experiments").write_text("")
    with pytest.raises(RunError, match="experiments can't be read"):
        list_runs(tmp_path / "experiments")


def test_runs_of_one_experiment_or_of_all(tmp_path: Path) -> None:
    """In the order in which they were started; other folders are passed over."""
    names = [_finished(tmp_path, experiment).name for experiment in ("b", "a", "b")]
    (tmp_path / "notes").mkdir()
    (tmp_path / "a" / "notes").mkdir()
    assert [(r.experiment, r.name) for r in list_runs(tmp_path)] == list(zip("bab", names, strict=True))
    assert [r.name for r in list_runs(tmp_path, "a")] == [names[1]]


def test_a_summary_tells_what_the_record_has(tmp_path: Path) -> None:
    """Duration, best metric, position and published versions."""
    best = {"metric": "val_loss", "value": 0.5, "step": 40}
    published = [{"version": 3, "step": 20}, {"version": 4, "step": 40}]
    run = _finished(tmp_path, best=best, published=published, epoch=2, step=40)
    summary = read_summary(run.path)
    assert (summary.status, summary.reason) == ("finished", "max_epochs")
    assert (summary.best, summary.published, summary.epoch, summary.step) == (best, [3, 4], 2, 40)
    assert summary.duration_s is not None
    assert 0 <= summary.duration_s < 60
    assert not summary.unfinished


@pytest.mark.parametrize("text", ["", "{", "[]", '{"status": 3}'])
def test_a_damaged_record_does_not_hide_the_others(tmp_path: Path, text: str) -> None:
    """It is listed with what is known of it."""
    sound, damaged = _finished(tmp_path), _finished(tmp_path)
    damaged.record_path.write_text(text)
    found = {run.name: run.status for run in list_runs(tmp_path)}
    assert found[sound.name] == "finished"
    assert found[damaged.name] == "unreadable"


def test_a_run_is_found_by_path_name_beginning_or_last(tmp_path: Path) -> None:
    """Whatever a person copies from the list."""
    first, second = _finished(tmp_path, "a"), _finished(tmp_path, "b")
    for text in (str(first.path), f"a/{first.name}"):
        assert find_run(text, tmp_path) == first.path
    assert find_run("last", tmp_path) == second.path
    third = RunFolder.create(tmp_path, "c", "slug")
    assert find_run(third.name, tmp_path) == third.path


@pytest.mark.parametrize("text", ["", "2", "1999", "nothing", "x" * 5000])
def test_no_run_or_several_are_told_apart(tmp_path: Path, text: str) -> None:
    """The message says which, and what to do."""
    _finished(tmp_path, "a"), _finished(tmp_path, "b")
    with pytest.raises(RunError, match="beginning of 2 runs" if text == "2" else "there is no run"):
        find_run(text, tmp_path)


def test_a_comparison_has_the_settings_that_differ_and_all_metrics(tmp_path: Path) -> None:
    """Equal settings are left out; a missing key is told from null."""
    first = _finished(
        tmp_path, settings="model: {hidden: 64, deep: true}\nlr: 0.1\n", metrics={"val_loss": 0.5, "acc": 0.9}
    )
    second = _finished(
        tmp_path, settings="model: {hidden: 32, deep: true}\nema: null\n", metrics={"val_loss": 0.4}
    )
    found = compare_runs(first.path, second.path)
    assert found.settings == {"model.hidden": (64, 32), "lr": (0.1, "(not set)"), "ema": ("(not set)", None)}
    assert found.metrics == {"val_loss": (0.5, 0.4), "acc": (0.9, None)}


def test_a_run_without_settings_can_not_be_compared(tmp_path: Path) -> None:
    """The missing file is named."""
    first, second = _finished(tmp_path), _finished(tmp_path)
    second.settings_path.unlink()
    with pytest.raises(RunError, match=r"settings\.yaml can't be read"):
        compare_runs(first.path, second.path)
