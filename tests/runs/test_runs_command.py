"""`runs` lists, shows and compares, in text and in JSON."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from time_limits import LIMIT_S

from unitrain.cli import main
from unitrain.runs import RunFolder

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["pytorch_lightning"] = None  # importing them fails
from unitrain.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def experiments(tmp_path: Path) -> Path:
    """Two finished runs of `curve`."""
    for hidden, loss in ((64, 0.25), (32, 0.5)):
        run = RunFolder.create(tmp_path, "curve", f"hidden={hidden}")
        run.settings_path.write_text(f"model: {{hidden: {hidden}, depth: 2}}\n")
        best = {"metric": "val_loss", "value": loss, "step": 10}
        run.update(epoch=4, step=20, best=best, metrics={"val_loss": loss}, published=[{"version": hidden}])
        run.close("finished", "max_epochs")
    return tmp_path


def test_runs_lists_a_line_a_run(experiments: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oldest first, with status, position, best metric and versions, aligned under their names."""
    assert main(["runs", "--experiments-dir", str(experiments)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == [
        "experiment",
        "run",
        "status",
        "started",
        "duration",
        "epochs/steps",
        "best",
        "metric",
        "published",
    ]
    assert [line.split()[-3:] for line in lines] == [["val_loss", "0.25", "64"], ["val_loss", "0.5", "32"]]
    assert all(line[head.index("status") :].startswith("finished") for line in lines)
    assert all(" 4/20 " in line for line in lines)


def test_runs_as_json_can_be_read_by_a_program(experiments: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The record of each run, with its folder and its status as found."""
    assert main(["runs", "--experiments_dir", str(experiments), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(run["status"], run["best"]["value"]) for run in found] == [("finished", 0.25), ("finished", 0.5)]
    assert Path(found[0]["path"]).is_dir()


@pytest.mark.parametrize(("extra", "shown"), [([], "there is no run in"), (["--json"], "[]")])
def test_no_runs_are_said_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], shown: str
) -> None:
    """And that is no failure."""
    assert main(["runs", "--experiments_dir", str(tmp_path / "none"), *extra]) == 0
    assert capsys.readouterr().out.startswith(shown)


def test_runs_show_tells_a_run_in_full(experiments: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its name's beginning, `last` or its folder; nested fields by dotted names."""
    assert main(["runs", "show", "last", "--experiments_dir", str(experiments)]) == 0
    fields = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert fields["status"] == "finished"
    assert fields["best.value"] == "0.5"
    assert fields["published[0].version"] == "32"


def test_runs_compare_shows_what_differs(experiments: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The settings that differ and the metrics, side by side; equal settings are left out."""
    names = sorted(path.name for path in (experiments / "curve").iterdir())
    assert main(["runs", "compare", *names, "--experiments_dir", str(experiments)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    hidden = {name: name.rpartition("=")[2] for name in names}
    assert ["model.hidden", *(hidden[name] for name in names)] in lines
    assert not any("model.depth" in line for line in lines)
    assert any(line[:1] == ["val_loss"] and set(line[1:]) == {"0.25", "0.5"} for line in lines)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["show", "nothing"], 1, "there is no run `nothing`"),
        (["compare", "last"], 2, "expected nothing, `show RUN` or `compare A B`"),
        (["list"], 2, "expected nothing, `show RUN` or `compare A B`"),
        (["--experiment-dir", "x"], 2, "did you mean --experiment"),
    ],
)
def test_what_can_not_be_done_is_one_sentence(
    experiments: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str
) -> None:
    """On standard error, with the exit code that tells usage from failure."""
    assert main(["runs", *words, "--experiments_dir", str(experiments)]) == code
    told = capsys.readouterr()
    assert message in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""


def test_runs_needs_no_torch(experiments: Path) -> None:
    """It works where torch can't be imported."""
    command = [sys.executable, "-c", WITHOUT_TORCH, "runs", "--experiments_dir", experiments]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT_S)
    assert answer.stdout.count("finished") == 2
