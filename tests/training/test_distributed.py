"""Two processes on one machine, by Lightning's launcher and by torchrun."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from time_limits import LIMIT_S, wait_until

from unitrain.repository import Repository

TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.max_epochs", "2"]


@pytest.fixture(autouse=True)
def one_thread_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with two threads each would stand in each other's way on two cores."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def watched(project: Path) -> Path:
    """The settings of a model whose processes leave the weights that they end with."""
    source = project / "models" / "small.py"
    source.write_text(
        source.read_text() + "\n\nclass Watched(Curve):\n"
        "    def on_fit_end(self):\n"
        "        torch.save(self.state_dict(), f'weights-{self.trainer.global_rank}.pt')\n"
    )
    path = project / "problem" / "settings.yaml"
    path.write_text(path.read_text().replace("models.small.Curve", "models.small.Watched"))
    return path


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command that ends in bounded time."""
    return subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        cwd=cwd,
    )


def check_run(project: Path) -> Path:
    """One run, one set of publications, every sample's embedding once, and the same average in both processes."""
    [run_dir] = (project / "experiments" / "points").iterdir()
    record = json.loads((run_dir / "run.json").read_text())
    assert (record["status"], record["epoch"]) == ("finished", 2)
    assert [entry["version"] for entry in record["published"]] == Repository(
        project / "triton_repo"
    ).versions("points")
    assert len(record["published"]) == 1
    assert record["data_fingerprint"] is not None  # of both processes' shares
    [snapshot] = (run_dir / "embeddings").iterdir()
    header, *lines = [line.split("\t") for line in (snapshot / "metadata.tsv").read_text().splitlines()]
    assert header == ["side", "sample"]
    assert [line[1] for line in lines] == [str(i) for i in range(64)]  # of both processes' shares
    first, second = (torch.load(project / f"weights-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first if "running" not in name)
    saved = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(first[name], saved[name]) for name in saved)
    return run_dir


@pytest.mark.slow
def test_lightnings_launcher_trains_in_two_processes(watched: Path, project: Path) -> None:
    """The average is equal on both, and only the main process writes."""
    done = run("unitrain", "fit", "--config", str(watched), *TWO, cwd=project)
    assert done.returncode == 0, done.stderr
    check_run(project)
    assert done.stderr.count("published points version 1") == 1


@pytest.mark.slow
def test_torchrun_trains_in_two_processes(watched: Path, project: Path) -> None:
    """The processes are started side by side, and agree on one run."""
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = run(*torchrun, "-m", "unitrain", "fit", "--config", str(watched), *TWO, cwd=project)
    assert done.returncode == 0, done.stderr
    check_run(project)


def test_signal_to_the_main_process_stops_both_and_the_run_resumes(settings: Path, project: Path) -> None:
    """Neither waits for the other; what was saved goes on."""
    endless = [*TWO[:-1], "100000", "--early_stopping", "null", "--publish", "null", "--embeddings", "null"]
    command = [sys.executable, "-m", "unitrain", "fit", "--config", str(settings), *endless]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=project, start_new_session=True
    )
    try:
        checkpoint = "experiments/points/*/checkpoints/last.ckpt"
        wait_until(lambda: list(project.glob(checkpoint)), "the training did not begin")
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=LIMIT_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 143, said
    [run_dir] = (project / "experiments" / "points").iterdir()
    assert json.loads((run_dir / "run.json").read_text())["status"] == "interrupted"
    done = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    epochs = str(done // 4 + 1)
    again = run("unitrain", "fit", "--resume", "last", "--trainer.max_epochs", epochs, cwd=project)
    assert again.returncode == 0, again.stderr
    assert json.loads((run_dir / "run.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_repository_that_refuses_ends_both_processes(settings: Path, project: Path) -> None:
    """The other one does not wait for a main process that has given up."""
    (project / "triton_repo").write_text("a file")
    done = run("unitrain", "fit", "--config", str(settings), *TWO, cwd=project)
    assert done.returncode == 2, done.stderr
    assert "publish.repository" in done.stderr
    assert not list(project.glob("experiments/*/*"))
