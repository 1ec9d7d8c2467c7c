"""`new` makes a project that works as it stands."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from time_limits import LIMIT_S
from triton_server import TritonServer

from unitrain.cli import main


def unitrain(project: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "unitrain", *arguments],
        cwd=project, capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_new_project_trains_publishes_and_is_served(
    triton: TritonServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the commands of its README; it learned something, and git would not see what it left."""
    assert main(["new", "my-problem", "--into", str(tmp_path)]) == 0
    project = tmp_path / "my-problem"
    assert f"cd {project}" in capsys.readouterr().out
    assert yaml.safe_load((project / "settings.yaml").read_text())["experiment"] == "my-problem"
    assert "PROJECT" not in (project / "README.md").read_text() + (project / "settings.yaml").read_text()
    # Own data come in their own units: these are far from 0 and from 1.
    data = project / "datamodules" / "measurements.py"
    data.write_text(
        data.read_text().replace(
            "    return features, (targets", "    return 5000 + 9 * features, 1e5 + 1e4 * (targets"
        )
    )
    unitrain(project, "check", "--config", "settings.yaml")
    unitrain(project, "fit", "--config", "settings.yaml", "--publish.repository", str(triton.repository))
    triton.wait_for("my-problem", 1)
    told = unitrain(
        project, "predict", "my-problem", "--url", triton.url, "--input", "golden",
        "--model-repository", str(triton.repository),
    )  # fmt: skip
    assert "as published" in told
    (run,) = json.loads(unitrain(project, "runs", "--json"))
    assert run["metrics"]["val_mae"] < 2500  # of targets that deviate by 14,000
    ignored = (project / ".gitignore").read_text().splitlines()
    assert {path.name + "/" for path in project.iterdir() if path.is_dir()} - set(ignored) == {
        "models/", "datamodules/",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "reason"),
    [("a b", "letters, digits"), ("../x", "letters, digits"), ("taken", "exists; choose another name")],
)
def test_wrong_name_is_refused_and_nothing_is_made(
    tmp_path: Path, name: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2, one sentence; what is there stays as it is."""
    (tmp_path / "taken").mkdir()
    assert main(["new", name, "--into", str(tmp_path)]) == 2
    assert reason in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert list((tmp_path / "taken").iterdir()) == []


def test_folder_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of `--into`."""
    assert main(["new", "x", "--into", str(tmp_path / "nowhere")]) == 2
    assert "can't be made: No such file" in capsys.readouterr().err
