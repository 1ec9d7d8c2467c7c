"""`make demo`: its targets, and its end."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from commands import ROOT
from time_limits import LIMIT_S


def processes_naming(text: str) -> list[str]:
    """Command lines of all running processes, but this one, that hold `text`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if text in words and int(path.parent.name) != os.getpid():
            found.append(words)
    return found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the examples in a project of its own, with nothing trained."""
    root = tmp_path / "project"
    for name in ("models", "datamodules", "examples"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.mark.slow
def test_demo_fails_with_the_missed_target_and_leaves_nothing_running(project: Path) -> None:
    """Two epochs are too few: exit 1, the figure that was missed is named, the table is printed all the same."""
    path = project / "examples" / "signals_clustering" / "settings.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["trainer"]["max_epochs"] = 2
    settings["data"]["init_args"]["repeats"] = 2
    settings["publish"]["every_n_validations"] = 1
    path.write_text(yaml.safe_dump(settings))
    demo = subprocess.run(
        [sys.executable, "-m", "examples.signals_clustering_demo.demo"],
        cwd=project, capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert demo.returncode == 1, demo.stdout + demo.stderr
    assert "target missed: explained variance" in demo.stderr
    assert "held-out 1-NN accuracy" in demo.stdout
    assert not processes_naming(str(project))
    (run_dir,) = (project / "experiments" / "signals_clustering").iterdir()
    assert (run_dir / "signals.png").is_file()
    assert json.loads((run_dir / "run.json").read_text())["published"]
    assert not (project / "triton_repo").exists()  # it has a repository of its own


@pytest.mark.slow
def test_demo_ended_by_a_signal_ends_its_children(project: Path) -> None:
    """SIGTERM in the middle of the training: exit 143, and neither training nor server goes on."""
    demo = subprocess.Popen(
        [sys.executable, "-m", "examples.signals_clustering_demo.demo"],
        cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert demo.stdout is not None
        assert any("exported" in line for line in demo.stdout), "the demo exported nothing"
        assert processes_naming(str(project)), "training and server run"
        demo.send_signal(signal.SIGTERM)
        demo.communicate(timeout=LIMIT_S)
    finally:
        if demo.poll() is None:
            demo.kill()
    assert demo.returncode == 143
    assert not processes_naming(str(project))
