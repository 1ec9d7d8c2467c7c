"""A full disk, whatever it keeps from being written, is a sentence and exit code 1; so is a checkpoint cut short."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import unitrain
from unitrain.cli import main

SIZES_KB = (4, 24, 28, 36, 44, 92)
"""At which a run of the small project runs out of space in its record, sources, events, checkpoints or embeddings."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Where a small filesystem can be mounted; what was mounted is gone afterwards."""
    if os.getuid() != 0 or not hasattr(os, "fork") or shutil.which("mount") is None:
        pytest.skip("only root can mount a small filesystem")
    folder = tmp_path / "disk"
    folder.mkdir()
    yield folder
    subprocess.run(["umount", "-l", folder], check=False, capture_output=True)


def _mount(folder: Path, size_kb: int) -> None:
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "none", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small filesystem can be mounted here: {done.stderr.strip()}")


@pytest.mark.parametrize("size_kb", SIZES_KB)
def test_a_full_disk_is_one_sentence(
    size_kb: int, settings: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """That names it; no traceback is printed, of TensorBoard's writer neither."""
    _mount(disk, size_kb)
    words = ["--experiments_dir", str(disk / "e"), "--publish", "null", "--trainer.max_epochs", "4"]
    assert main(["fit", "--config", str(settings), *words]) == 1
    text = capsys.readouterr().err
    assert text.splitlines()[-1].startswith("error: ")
    assert "No space left on device" in text.splitlines()[-1]
    assert "Traceback" not in text
    assert "unexpected" not in text
    assert "traceback" not in text
    for path in disk.rglob("run.json"):
        assert json.loads(path.read_text())["experiment"] == "points"


def test_a_full_disk_of_the_repository_does_not_end_the_training(
    settings: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The version is refused with the reason; the run comes to its end."""
    _mount(disk, 16)
    assert main(["fit", "--config", str(settings), "--publish.repository", str(disk / "r"), "--quiet"]) == 0
    assert "No space left on device" in capsys.readouterr().err
    assert not list(disk.glob("r/points/*/model.onnx"))


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_checkpoint_cut_short_is_one_sentence(
    share: float, settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By every command that reads it: resume, initialise, validate, export."""
    off = {"publish": None, "embeddings": None, "summaries": None, "trainer.max_epochs": 1}
    run_dir = unitrain.fit(settings, off, quiet=True).run_dir
    for path in (run_dir / "checkpoints").glob("*.ckpt"):
        os.truncate(path, int(path.stat().st_size * share))
    capsys.readouterr()
    for words in (
        ["fit", "--resume", str(run_dir), "--trainer.max_epochs", "2"],
        ["fit", "--config", str(settings), "--init-from", str(run_dir), "--publish", "null"],
        ["validate", "--run", str(run_dir)],
        ["export", "--run", str(run_dir), "--model-repository", str(tmp_path / "r")],
    ):
        code, error = main(words), capsys.readouterr().err
        assert code == 1, (words, error)
        assert error.splitlines()[-1].startswith("error: ")
        assert "checkpoint" in error.splitlines()[-1] or "ckpt" in error.splitlines()[-1]
        assert "unexpected" not in error
        assert "Traceback" not in error
