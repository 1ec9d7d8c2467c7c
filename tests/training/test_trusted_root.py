"""A run's folder is code once it is resumed or validated: the project that it names must be one that the user is in."""

import json
import shutil
from pathlib import Path

import pytest

import unitrain
from unitrain.cli import main
from unitrain.errors import UsageError
from unitrain.training.console import Console
from unitrain.training.evaluation import evaluate
from unitrain.training.export_checkpoint import export_run

SHORT = {"trainer.max_epochs": 1, "publish": None, "embeddings": None, "summaries": None}


@pytest.fixture
def run_dir(settings: Path, tmp_path: Path) -> Path:
    """A run whose folder is outside of its project."""
    experiments_dir = tmp_path / "elsewhere" / "experiments"
    return unitrain.fit(settings, SHORT | {"experiments_dir": str(experiments_dir)}, quiet=True).run_dir


@pytest.fixture
def hostile(run_dir: Path, project: Path, tmp_path: Path) -> Path:
    """The run of a project that has been replaced: what is imported from it leaves a file."""
    trap = tmp_path / "trap"
    shutil.copytree(project, trap)
    source = trap / "models" / "small.py"
    source.write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'imported')!r}).touch()\n{source.read_text()}"
    )
    record = json.loads((run_dir / "run.json").read_text())
    (run_dir / "run.json").write_text(json.dumps(record | {"root": str(trap)}))
    return run_dir


@pytest.mark.parametrize(
    "words", [["fit", "--resume"], ["validate", "--run"], ["test", "--run"], ["export", "--run"]]
)
def test_a_root_elsewhere_is_refused_before_it_is_imported(
    words: list[str], hostile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence that names the root and the flag, exit code 2; nothing of it has run."""
    assert main([*words, str(hostile)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert str(tmp_path / "trap") in error
    assert "--trust" in error
    assert not (tmp_path / "imported").exists()


def test_a_root_elsewhere_is_refused_in_python(hostile: Path, tmp_path: Path) -> None:
    """By resume, evaluate and export alike."""
    for call in (
        lambda: unitrain.resume(hostile, {"trainer.max_epochs": 2}, quiet=True),
        lambda: evaluate(hostile),
        lambda: export_run(hostile, console=Console(quiet=True)),
    ):
        with pytest.raises(UsageError, match="--trust"):
            call()
    assert not (tmp_path / "imported").exists()


def test_trust_takes_the_root_that_the_run_names(hostile: Path, tmp_path: Path) -> None:
    """The flag and the argument."""
    assert main(["validate", "--run", str(hostile), "--trust"]) == 0
    assert (tmp_path / "imported").exists()
    evaluate(hostile, trust=True)
    unitrain.resume(hostile, {"trainer.max_epochs": 2}, quiet=True, trust=True)
    assert main(["fit", "--resume", str(hostile), "--trust", "--trainer.max_epochs", "3", "--quiet"]) == 0
    assert main(["export", "--run", str(hostile), "--trust", "--model-repository", str(tmp_path / "r")]) == 0


def test_the_project_of_the_working_folder_is_trusted(
    run_dir: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from a folder below its root."""
    monkeypatch.chdir(project / "problem")
    evaluate(run_dir)


def test_the_project_of_the_config_is_trusted(run_dir: Path, settings: Path) -> None:
    """`fit --resume RUN --config F` names it."""
    words = ["--config", str(settings), "--trainer.max_epochs", "2", "--quiet"]
    assert main(["fit", "--resume", str(run_dir), *words]) == 0


def test_a_moved_project_is_trusted(settings: Path, project: Path, tmp_path: Path) -> None:
    """Its own code is taken, not that of the place where it was."""
    run = unitrain.fit(settings, SHORT, quiet=True)
    moved = tmp_path / "moved"
    shutil.move(project, moved)
    run_dir = moved / run.run_dir.relative_to(project)
    evaluate(run_dir)
    unitrain.resume(run_dir, {"trainer.max_epochs": 2}, quiet=True)


def test_trust_without_a_run_is_wrong_usage(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`fit` from settings imports what the user names anyway."""
    assert main(["fit", "--config", str(settings), "--trust"]) == 2
    assert "--trust" in capsys.readouterr().err
