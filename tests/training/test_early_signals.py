"""A signal before the first step ends `fit` with its own sentence and code, and leaves no run folder that can't be resumed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from time_limits import LIMIT_S, wait_until

from unitrain.cli import main

KILL = "__import__('os').kill(__import__('os').getpid(), {number})"
STAGES = {
    "import": "{kill}\n\nclass Stopped(Curve):\n    pass\n",
    "__init__": "class Stopped(Curve):\n    def __init__(self, **options):\n        super().__init__(**options)\n        {kill}\n",
    "setup": "class Stopped(Curve):\n    def setup(self, stage):\n        {kill}\n",
    "optimizers": (
        "class Stopped(Curve):\n    def configure_optimizers(self):\n        {kill}\n"
        "        return super().configure_optimizers()\n"
    ),
    "fit start": "class Stopped(Curve):\n    def on_fit_start(self):\n        {kill}\n",
    "sanity check": (
        "class Stopped(Curve):\n    def validation_step(self, batch, batch_idx):\n        {kill}\n"
        "        return super().validation_step(batch, batch_idx)\n"
    ),
    "train start": "class Stopped(Curve):\n    def on_train_start(self):\n        {kill}\n",
}
RESUMABLE = ("fit start", "sanity check", "train start")
"""Stages after which `last.ckpt` is written before the first epoch, so that the run can be resumed."""
SIGNALS = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
    signal.SIGUSR1: signal.SIG_DFL,
}


@pytest.fixture
def usual_handlers():
    """Python's own, which a shell may have had ignored for what runs in the background."""
    before = {number: signal.signal(number, usual) for number, usual in SIGNALS.items()}
    yield
    for number, handler in before.items():
        assert signal.getsignal(number) is SIGNALS[number]
        signal.signal(number, handler)


@pytest.mark.usefixtures("usual_handlers")
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_early_signal_leaves_nothing_half_done(
    stage: str, number: signal.Signals, settings: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """While modules are imported and built, data are set up, and validation is tried."""
    source = project / "models" / "small.py"
    source.write_text(
        source.read_text() + "\n\n" + STAGES[stage].format(kill=KILL.format(number=int(number)))
    )
    words = ["--model.class_path", "models.small.Stopped", "--publish", "null"]
    assert main(["fit", "--config", str(settings), *words]) == 128 + number
    error = capsys.readouterr().err
    assert "unexpected" not in error
    assert "Traceback" not in error
    if stage in RESUMABLE:
        (run,) = project.glob("experiments/*/*")
        assert f"interrupted: {number.name}; {run}" in error
        assert (run / "checkpoints" / "last.ckpt").is_file()
    else:
        assert f"stopped by {number.name}" in error
        assert not list(project.glob("experiments/*/*"))


def test_a_signal_while_torch_is_imported_is_one_line(settings: Path, project: Path) -> None:
    """In a process of its own, as soon as it has loaded torch's library."""
    process = subprocess.Popen(
        [sys.executable, "-m", "unitrain", "fit", "--config", str(settings)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    maps = Path(f"/proc/{process.pid}/maps")
    wait_until(lambda: "libtorch" in maps.read_text(), "torch was not imported", every_s=0.01)
    os.kill(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, out) == (143, "stopped by SIGTERM\n")
    assert not (project / "experiments").exists()
