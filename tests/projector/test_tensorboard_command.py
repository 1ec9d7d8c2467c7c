"""`tensorboard` opens on the experiments, on loopback, and leaves nothing running."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from time_limits import LIMIT_S, wait_until

from unitrain.cli import main
from unitrain.projector import write_snapshot
from unitrain.runs import RunFolder

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["pytorch_lightning"] = None  # importing them fails
from unitrain.cli import main
sys.exit(main(sys.argv[1:]))
"""


class Command:
    """The command as a process, from its link to its end."""

    def __init__(self, *arguments: object, cwd: Path | None = None, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WITHOUT_TORCH, "tensorboard", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=dict(os.environ, DISPLAY="", WAYLAND_DISPLAY="") | environment,
        )
        assert self.process.stdout is not None
        self.lines: list[str] = []
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith("TensorBoard: "):
                break
        link = re.match(r"TensorBoard: (http://127\.0\.0\.1:(\d+))/ ", self.lines[-1] if self.lines else "")
        assert link, self.process.communicate()
        self.url, self.port = link[1], int(link[2])

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode

    def projector_runs(self, count: int) -> list[str]:
        """The runs with embeddings, once there are `count`."""

        def listed() -> list[str]:
            with urllib.request.urlopen(f"{self.url}/data/plugin/projector/runs", timeout=LIMIT_S) as answer:  # noqa: S310
                runs: list[str] = json.load(answer)
            return sorted(runs) if len(runs) >= count else []

        return wait_until(listed, f"TensorBoard did not list {count} runs")


@pytest.fixture
def experiments(tmp_path: Path) -> Path:
    """Three runs with a snapshot each, of two experiments, under a path with a blank and an accent."""
    directory = tmp_path / "meine Läufe"
    for experiment in ("a", "a", "b"):
        run = RunFolder.create(directory, experiment)
        write_snapshot(run.log_dir, "", {"code": np.zeros((5, 3))}, step=1)
        run.close("finished", "")
    return directory


@pytest.fixture
def started() -> Iterator[list[Command]]:
    """Ends what a failed test left running."""
    commands: list[Command] = []
    yield commands
    for command in commands:
        if command.process.poll() is None:
            command.end(signal.SIGTERM)


def _runs(experiments: Path, experiment: str) -> list[Path]:
    return sorted((experiments / experiment).iterdir())


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_experiments_are_shown_until_a_signal_ends_it(
    experiments: Path, started: list[Command], number: signal.Signals
) -> None:
    """Exit 0, its ordinary end, with the port free and no process left; torch is never needed."""
    command = Command("--experiments_dir", experiments, "--port", 0)
    started.append(command)
    runs = [*_runs(experiments, "a"), *_runs(experiments, "b")]
    shown = sorted(str(run.relative_to(experiments) / "embeddings/step_1") for run in runs)
    assert command.projector_runs(3) == shown
    assert command.end(number) == 0
    assert not _listens(command.port)


def test_a_taken_port_gives_way_to_a_free_one(experiments: Path, started: list[Command]) -> None:
    """Said, and the link has the port that was had."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = Command("--experiments_dir", experiments, "--port", port)
        started.append(command)
        assert command.port != port
        assert command.lines[0].startswith(f"port {port} can't be had")


def test_a_chosen_port_is_used(experiments: Path, started: list[Command]) -> None:
    """Where it is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started.append(Command("--experiments_dir", experiments, "--port", port))
    assert started[0].port == port


def test_chosen_runs_are_shown_alone_with_their_embeddings(experiments: Path, started: list[Command]) -> None:
    """Two of three, one by its folder and one by its name; what gathers them is gone afterwards."""
    first, second = _runs(experiments, "a")[0], _runs(experiments, "b")[0]
    command = Command(first, f"b/{second.name}", "--experiments_dir", experiments, "--port", 0)
    started.append(command)
    expected = [f"a/{first.name}/embeddings/step_1", f"b/{second.name}/embeddings/step_1"]
    assert command.projector_runs(2) == expected
    assert command.end(signal.SIGTERM) == 0


def test_one_experiment_is_shown_by_its_name(experiments: Path, started: list[Command]) -> None:
    """Its two runs, and not the other experiment's."""
    command = Command("a", "--experiments_dir", experiments, "--port", 0)
    started.append(command)
    assert command.projector_runs(2) == sorted(
        f"{run.name}/embeddings/step_1" for run in _runs(experiments, "a")
    )


@pytest.mark.parametrize(
    ("environment", "options", "opened"),
    [
        ({"DISPLAY": ":9"}, [], True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, [], True),
        ({}, [], False),
        ({"DISPLAY": ":9"}, ["--no-browser"], False),
    ],
    ids=["x11", "wayland", "no_display", "not_wanted"],
)
def test_a_browser_is_opened_where_there_is_one(
    *,
    experiments: Path,
    started: list[Command],
    tmp_path: Path,
    environment: dict[str, str],
    options: list[str],
    opened: bool,
) -> None:
    """On the link that is printed; not without a display, and not against the person's wish."""
    notes, browser = tmp_path / "notes", tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > "{notes}.new"; mv "{notes}.new" "{notes}"\n')
    browser.chmod(0o755)
    arguments = ["--experiments_dir", experiments, "--port", 0, *options]
    command = Command(*arguments, BROWSER=f"{browser} %s", **environment)
    started.append(command)
    if not opened:
        time.sleep(1)
        assert not notes.exists()
    else:
        wait_until(notes.exists, "the browser was not opened")
        assert notes.read_text().strip() == f"{command.url}/"


def test_no_experiments_yet_is_said_and_waited_for(tmp_path: Path, started: list[Command]) -> None:
    """A run that is made later shows up."""
    directory = tmp_path / "experiments"
    command = Command("--experiments_dir", directory, "--port", 0)
    started.append(command)
    assert command.lines[0].startswith(f"there is no folder {directory} yet")
    assert not directory.exists()
    write_snapshot(directory / "a" / "run", "", {"code": np.zeros((5, 3))}, step=1)
    assert command.projector_runs(1) == ["a/run/embeddings/step_1"]


def test_a_run_that_comes_with_an_example_is_shown_where_there_are_no_experiments(
    tmp_path: Path, started: list[Command]
) -> None:
    """Only where no other folder was asked for."""
    write_snapshot(
        tmp_path / "examples" / "b" / "pretrained_run" / "run", "", {"code": np.zeros((5, 3))}, step=1
    )
    started.append(Command("--port", 0, cwd=tmp_path))
    assert "this is the run in examples/b/pretrained_run" in started[0].lines[0]
    assert started[0].projector_runs(1) == ["run/embeddings/step_1"]
    started.append(Command("--experiments_dir", "mine", "--port", 0, cwd=tmp_path))
    assert "runs show up as they are made" in started[1].lines[0]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nothing"], 1, "there is no run `nothing`"),
        (["--port", "70000"], 2, "--port expects 0 to 65535, got 70000"),
        (["--port", "x"], 2, "invalid int value: 'x'"),
        (["--logdir", "x"], 2, "there is no option --logdir"),
    ],
)
def test_what_can_not_be_done_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    """On standard error, before anything is started."""
    assert main(["tensorboard", *arguments, "--experiments_dir", str(tmp_path)]) == code
    told = capsys.readouterr()
    assert message in told.err
    assert told.err.count("\n") == 1
