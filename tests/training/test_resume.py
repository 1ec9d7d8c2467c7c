"""A run that was interrupted and goes on ends as if it had not been."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from slow_cases import slow_after, slow_except
from time_limits import LIMIT_S, wait_until

import unitrain
from unitrain.errors import RunError, UnitrainError
from unitrain.training.checkpoint import checkpoint_fault

OFF = {"publish": None, "embeddings": None, "summaries": None}


def equal(a: Any, b: Any) -> bool:
    """Whether two trees of plain data and tensors are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def state(path: Path | None) -> dict[str, Any]:
    """All of a checkpoint that must not depend on an interruption."""
    assert path is not None
    content = torch.load(path, weights_only=True)
    kept = (
        "state_dict",
        "current_model_state",
        "optimizer_states",
        "lr_schedulers",
        "averaging_state",
        "global_step",
        "epoch",
    )
    callbacks = {
        name: {k: v for k, v in value.items() if not k.endswith(("path", "dirpath", "best_k_models"))}
        for name, value in content["callbacks"].items()
    }
    return {key: content[key] for key in kept if key in content} | {"callbacks": callbacks}


def interrupt_after(module_source: str, batches: int) -> str:
    """The model's source with a signal to itself after so many batches of its first life."""
    return module_source + (
        "\n\nclass Interrupted(Curve):\n"
        "    def on_train_batch_end(self, outputs, batch, batch_idx):\n"
        "        import os, pathlib, signal\n"
        "        mark = pathlib.Path(__file__).with_name('was-interrupted')\n"
        f"        if self.trainer.fit_loop.total_batch_idx + 1 == {batches} and not mark.exists():\n"
        "            mark.touch()\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
    )


CASES = {
    "in the middle of an epoch": (13, {}),
    "at an epoch's end": (16, {}),
    "at the first step": (1, {}),
    "with gradient accumulation": (13, {"trainer.accumulate_grad_batches": 3}),
    "with validation in mid-epoch": (13, {"trainer.val_check_interval": 0.5}),
    "at a validation in mid-epoch": (12, {"trainer.val_check_interval": 0.5}),
    "at a validation that is counted over epochs": (
        12,
        {"trainer.val_check_interval": 12, "trainer.check_val_every_n_epoch": None},
    ),
    "with a scheduler by epoch": (
        13,
        {
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01, "momentum": 0.9}},
            "lr_scheduler": {
                "class_path": "torch.optim.lr_scheduler.StepLR",
                "init_args": {"step_size": 1, "gamma": 0.5},
            },
        },
    ),
    "with our loader that fetches by sample": (13, {"data.class_path": "datamodules.points.SampledPoints"}),
    "with our loader and workers": (
        13,
        {"data.class_path": "datamodules.points.SampledPoints", "data.init_args.num_workers": 2},
    ),
    "with torch's own loader that shuffles": (
        13,
        {"data.class_path": "datamodules.points.DictPoints"},
    ),
    "with torch's own loader and workers": (
        13,
        {"data.class_path": "datamodules.points.DictPoints", "data.init_args.num_workers": 2},
    ),
}


QUICK = [
    "in the middle of an epoch",
    "at a validation in mid-epoch",
    "with a scheduler by epoch",
    "with gradient accumulation",
    "with torch's own loader and workers",
]
"""Cases that `make test` runs."""


@pytest.mark.parametrize("case", slow_except(QUICK, CASES))
def test_interrupted_and_resumed_run_equals_the_uninterrupted(
    case: str, settings: Path, project: Path
) -> None:
    """Weights, average, optimizer, scheduler, early stopping's counter, best score and metrics, to the bit."""
    batches, overrides = CASES[case]
    source = project / "models" / "small.py"
    source.write_text(interrupt_after(source.read_text(), batches))
    overrides = OFF | overrides | {"model.class_path": "models.small.Interrupted", "trainer.max_epochs": 3}
    if "data.class_path" in overrides:
        settings.write_text(settings.read_text().replace("links:", "# links:"))
    first = unitrain.fit(settings, overrides, quiet=True)
    assert (first.status, first.exit_code) == ("interrupted", 143)
    second = unitrain.resume(first.run_dir, quiet=True)
    assert second.status == "finished"
    assert second.run_dir == first.run_dir
    whole = unitrain.fit(settings, overrides, quiet=True)  # the mark is there: it runs through
    assert whole.status == "finished"
    a, b = state(second.last_checkpoint), state(whole.last_checkpoint)
    assert [key for key in a if not equal(a[key], b[key])] == []
    a, b = state(second.best_checkpoint), state(whole.best_checkpoint)
    assert [key for key in a if not equal(a[key], b[key])] == []
    assert second.metrics == whole.metrics
    assert second.best == whole.best
    record = json.loads((second.run_dir / "run.json").read_text())
    assert record["resumes_from"] == "mid-epoch"
    assert len(record["resumed"]) == 1


@pytest.mark.slow
def test_what_a_hook_at_the_epochs_start_does_to_the_optimizer_is_done_once(
    settings: Path, project: Path
) -> None:
    """A learning rate that `on_train_epoch_start` lowers is that of the uninterrupted run."""
    source = project / "models" / "small.py"
    lowers = (
        "    def on_train_epoch_start(self):\n"
        "        for group in self.optimizers().param_groups:\n"
        "            group['lr'] *= 0.7\n"
    )
    source.write_text(interrupt_after(source.read_text(), 13) + lowers)
    overrides = OFF | {"model.class_path": "models.small.Interrupted", "trainer.max_epochs": 3}
    first = unitrain.fit(settings, overrides, quiet=True)
    assert first.status == "interrupted"
    second = unitrain.resume(first.run_dir, quiet=True)
    whole = unitrain.fit(settings, overrides, quiet=True)
    a, b = state(second.last_checkpoint), state(whole.last_checkpoint)
    assert [key for key in a if not equal(a[key], b[key])] == []


def test_resume_with_more_epochs_extends_a_finished_run(settings: Path) -> None:
    """As if it had been as long from the beginning."""
    short = unitrain.fit(settings, OFF | {"trainer.max_epochs": 2}, quiet=True)
    extended = unitrain.resume(short.run_dir, {"trainer.max_epochs": 4}, quiet=True)
    long = unitrain.fit(settings, OFF | {"trainer.max_epochs": 4}, quiet=True)
    a, b = state(extended.last_checkpoint), state(long.last_checkpoint)
    assert [key for key in a if not equal(a[key], b[key])] == []
    assert yaml.safe_load((short.run_dir / "settings.yaml").read_text())["trainer"]["max_epochs"] == 4


def test_finished_run_is_said_to_be_so(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing happens, and the exit code is 0."""
    done = unitrain.fit(settings, OFF | {"trainer.max_epochs": 1}, quiet=True)
    again = unitrain.resume(done.run_dir)
    assert (again.exit_code, again.status) == (0, "finished")
    assert "has finished" in capsys.readouterr().err


def test_damaged_last_checkpoint_is_passed_over_for_the_best(
    settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One flipped bit in a tensor is found by its checksum; the run says what it goes on from."""
    run = unitrain.fit(settings, OFF | {"trainer.max_epochs": 2}, quiet=True)
    assert run.last_checkpoint is not None
    data = bytearray(run.last_checkpoint.read_bytes())
    weight = torch.load(run.last_checkpoint, weights_only=True)["state_dict"]["net.0.weight"]
    data[data.index(weight.numpy().tobytes())] ^= 1
    run.last_checkpoint.write_bytes(data)
    assert checkpoint_fault(run.last_checkpoint) is not None
    resumed = unitrain.resume(run.run_dir, {"trainer.max_epochs": 3})
    said = capsys.readouterr().err
    assert "last.ckpt is damaged" in said
    assert "resumes from best.ckpt" in said
    assert resumed.status == "finished"
    assert checkpoint_fault(run.last_checkpoint) is None


def test_nothing_to_resume_is_an_error(settings: Path, project: Path) -> None:
    """No run at all, and a run without a whole checkpoint, never a fresh start."""
    with pytest.raises(RunError, match="there is no run"):
        unitrain.resume("last", experiments_dir=project / "experiments")
    run = unitrain.fit(settings, OFF | {"trainer.max_epochs": 1}, quiet=True)
    shutil.rmtree(run.run_dir / "checkpoints")
    with pytest.raises(RunError, match="nothing to resume"):
        unitrain.resume(run.run_dir)


def test_drift_of_the_sources_is_shown(
    settings: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The changed file is named, and the run goes on."""
    run = unitrain.fit(settings, OFF | {"trainer.max_epochs": 1}, quiet=True)
    source = project / "models" / "small.py"
    source.write_text(source.read_text() + "\n# changed\n")
    unitrain.resume(run.run_dir, {"trainer.max_epochs": 2})
    assert "changed since the run began: models/small.py" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["Curve", "ByHand"])
def test_resumed_run_goes_on_in_its_curve(model: str, settings: Path) -> None:
    """TensorBoard shows each step once, though the killed process had logged beyond its checkpoint."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if model == "ByHand":  # two optimizer steps a batch
        settings.write_text(settings.read_text().replace("links:", "# links:"))
    changed = {"model.class_path": f"models.small.{model}", "trainer.log_every_n_steps": 1}
    changed |= OFF | {"summaries": {"graph": False, "histograms_every_n_validations": 1}}
    run = unitrain.fit(settings, changed | {"trainer.max_epochs": 3}, quiet=True)
    assert run.last_checkpoint is not None
    first = unitrain.fit(settings, changed | {"trainer.max_epochs": 1}, quiet=True)
    assert first.last_checkpoint is not None
    shutil.copy(
        first.last_checkpoint, run.last_checkpoint
    )  # as if killed after three epochs, saved after one
    time.sleep(1.1)  # TensorBoard orders files by the second in their names
    unitrain.resume(run.run_dir, {"trainer.max_epochs": 3}, quiet=True)
    events = EventAccumulator(str(run.run_dir), size_guidance={"histograms": 0}).Reload()
    rates = ["lr"] if model == "Curve" else ["lr_0", "lr_1", "gradient_norm_0", "gradient_norm_1"]
    for tag in ("train_loss", *rates):
        assert [e.step for e in events.Scalars(tag)] == list(range(24)), tag
    for tag in ("val_loss", "best/val_loss", "ema_distance"):
        assert [e.step for e in events.Scalars(tag)] == [7, 15, 23], tag
    for tag in events.Tags()["histograms"]:
        assert [e.step for e in events.Histograms(tag)] == [7, 15, 23], tag


def test_a_moved_project_keeps_its_best_checkpoint_and_runs_its_own_code(
    settings: Path, project: Path
) -> None:
    """The run goes on where it lies now; what is worse than its best does not take the best one's place."""
    worse = {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 1e-3, "maximize": True}}}
    run = unitrain.fit(settings, OFF | worse | {"ema": None, "trainer.max_epochs": 2}, quiet=True)
    moved = project.rename(project.with_name("elsewhere"))
    resumed = unitrain.resume(moved / run.run_dir.relative_to(project), {"trainer.max_epochs": 3}, quiet=True)
    assert resumed.run_dir.is_relative_to(moved)
    assert torch.load(resumed.last_checkpoint, weights_only=True)["global_step"] == 24
    assert torch.load(resumed.best_checkpoint, weights_only=True)["global_step"] == 8
    assert not project.exists()


def test_settings_that_change_on_resuming_hold_or_are_said_not_to(
    settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Patience is the new one; an optimizer goes on as it was saved, which the console says."""
    short = OFF | {"early_stopping": {"patience": 1, "min_delta": 1e9}, "trainer.max_epochs": 50}
    run = unitrain.fit(settings, short, quiet=True)
    assert run.status == "stopped"
    changes = {"early_stopping.patience": 3, "optimizer": {"class_path": "torch.optim.Adam"}}
    resumed = unitrain.resume(run.run_dir, changes)
    assert json.loads((run.run_dir / "run.json").read_text())["epoch"] == 4
    assert resumed.reason == "val_loss no longer improved (early stopping)"
    assert "the optimizer continues with its saved state" in capsys.readouterr().err


def test_new_run_begins_with_anothers_weights(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Averaged or raw ones; what does not fit is listed, and a model of which nothing fits is refused."""
    old = unitrain.fit(settings, OFF | {"trainer.max_epochs": 2}, quiet=True)
    frozen = {
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.0}},
        "trainer.max_epochs": 1,
    }
    saved = torch.load(old.best_checkpoint, weights_only=True)
    for kind, key in (("ema", "state_dict"), ("raw", "current_model_state")):
        new = unitrain.fit(settings, OFF | frozen, init_from=old.run_dir, init_weights=kind, quiet=True)
        begun = torch.load(new.last_checkpoint, weights_only=True)["current_model_state"]
        assert torch.equal(begun["net.0.weight"], saved[key]["net.0.weight"])
        assert new.run_dir != old.run_dir
    third = unitrain.fit(settings, OFF | frozen, init_from="last", quiet=True)
    begun_with = json.loads((third.run_dir / "run.json").read_text())["init_from"]["checkpoint"]
    assert begun_with == str(new.best_checkpoint), "`last` is the newest run before this one"
    capsys.readouterr()
    unitrain.fit(settings, OFF | frozen | {"model.init_args.hidden": 8}, init_from=old.run_dir)
    said = capsys.readouterr().err
    assert "net.0.weight" in said
    assert "of another shape" in said


def start(settings: Path, *flags: str) -> subprocess.Popen[str]:
    """A training in a process of its own."""
    command = [sys.executable, "-m", "unitrain", "fit", "--config", str(settings), *flags]
    off = [word for name in OFF for word in (f"--{name}", "null")]
    return subprocess.Popen([*command, *off], stderr=subprocess.PIPE, text=True, cwd=settings.parent)


def wait_until_it_trains(project: Path) -> Path:
    """The run's folder, once a checkpoint is there."""
    checkpoint = "experiments/points/*/checkpoints/last.ckpt"
    found = wait_until(lambda: list(project.glob(checkpoint)), "the training did not begin")
    return found[0].parents[1]


@pytest.mark.parametrize(
    ("number", "code"), slow_after(1, [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
)
def test_signal_ends_with_a_checkpoint_and_its_exit_code(
    number: int, code: int, settings: Path, project: Path
) -> None:
    """The run is interrupted, says by what, and can be resumed."""
    process = start(settings, "--trainer.max_epochs", "100000", "--early_stopping", "null")
    run_dir = wait_until_it_trains(project)
    process.send_signal(number)
    _, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode == code, said
    record = json.loads((run_dir / "run.json").read_text())
    assert (record["status"], record["reason"]) == ("interrupted", signal.Signals(number).name)
    done = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    epochs = done // 8 + 2
    resumed = unitrain.resume(run_dir, {"trainer.max_epochs": epochs}, quiet=True)
    assert torch.load(resumed.last_checkpoint, weights_only=True)["global_step"] == 8 * epochs
    assert "Traceback" not in said


def test_second_signal_quits_at_once(settings: Path, project: Path) -> None:
    """A step that takes minutes is not waited for twice, and the run says how it ended."""
    source = project / "models" / "small.py"
    source.write_text(
        source.read_text() + "\n\nclass Slow(Curve):\n"
        "    def on_train_batch_start(self, batch, batch_idx):\n"
        "        import time\n"
        "        while self.trainer.current_epoch == 1:\n"
        "            time.sleep(0.05)\n"
    )
    process = start(settings, "--model.class_path", "models.small.Slow")
    run_dir = wait_until_it_trains(project)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 143
    assert "a second signal quits at once" in said
    assert json.loads((run_dir / "run.json").read_text())["status"] == "interrupted"


def test_killed_run_is_recognised_and_resumed_as_the_last(settings: Path, project: Path) -> None:
    """Kill -9 leaves no word, but a whole checkpoint; a second resume meanwhile is refused by name."""
    process = start(settings, "--trainer.max_epochs", "100000", "--early_stopping", "null")
    run_dir = wait_until_it_trains(project)
    with pytest.raises(RunError, match=str(process.pid)):
        unitrain.resume(run_dir, {"trainer.max_epochs": 1}, quiet=True)
    process.kill()
    process.communicate(timeout=LIMIT_S)
    from unitrain.runs import list_runs

    assert [run.status for run in list_runs(project / "experiments")] == ["killed"]
    assert checkpoint_fault(run_dir / "checkpoints/last.ckpt") is None
    done = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)["global_step"] // 8
    resumed = unitrain.resume(
        "last", {"trainer.max_epochs": done + 1}, experiments_dir=project / "experiments", quiet=True
    )
    assert resumed.run_dir == run_dir


def test_loss_that_is_no_number_stops_the_run_and_keeps_the_best(settings: Path, project: Path) -> None:
    """Exit code 1, the checkpoints of before, nothing published of it."""
    source = project / "models" / "small.py"
    source.write_text(
        source.read_text() + "\n\nclass Diverges(Curve):\n"
        "    def loss(self, inputs, outputs, batch):\n"
        "        bad = self.training and self.trainer.current_epoch == 2\n"
        "        return super().loss(inputs, outputs, batch)['mse'] * (float('nan') if bad else 1.0)\n"
    )
    with pytest.raises(UnitrainError, match=r"the loss of Diverges is NaN or infinite at epoch 3") as caught:
        unitrain.fit(settings, {"model.class_path": "models.small.Diverges"}, quiet=True)
    assert caught.value.exit_code == 1
    [run] = (project / "experiments/points").iterdir()
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "failed"
    assert "NaN" in record["reason"]
    assert [entry["step"] for entry in record["published"]] == [16]
    for name in ("best", "last"):
        saved = torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True)
        assert all(torch.isfinite(w).all() for w in saved["state_dict"].values() if w.is_floating_point())


def test_a_loss_optimized_by_hand_that_is_no_number_stops_the_run(settings: Path) -> None:
    """Such a step returns nothing: the loss is seen where it is differentiated."""
    settings.write_text(settings.read_text().replace("links:", "# links:"))
    model = {"model.class_path": "models.small.ByHand", "model.init_args.nan_at": 1}
    with pytest.raises(UnitrainError, match=r"the loss of ByHand is NaN or infinite at epoch 2"):
        unitrain.fit(settings, OFF | model, quiet=True)


@pytest.fixture
def ctrl_c_is_heard() -> Iterator[Any]:
    """Python's own handler of SIGINT, which a shell may have had ignored for what runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_before_the_first_epoch_is_an_interruption(
    settings: Path, project: Path, ctrl_c_is_heard: Any
) -> None:
    """While data are prepared, say; signals are the caller's again afterwards."""
    source = project / "datamodules" / "points.py"
    source.write_text(
        source.read_text() + "\n\nclass Slow(Points):\n    def setup(self, stage):\n"
        "        import os, signal\n        os.kill(os.getpid(), signal.SIGINT)\n"
    )
    result = unitrain.fit(settings, OFF | {"data.class_path": "datamodules.points.Slow"}, quiet=True)
    assert (result.status, result.reason, result.exit_code) == ("interrupted", "SIGINT", 130)
    assert signal.getsignal(signal.SIGINT) is ctrl_c_is_heard


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a limit on a process of its own")
def test_full_disk_keeps_the_earlier_checkpoint(settings: Path, project: Path) -> None:
    """A checkpoint that can't be written ends the run with the reason, and the one before is whole."""
    first = unitrain.fit(settings, OFF | {"trainer.max_epochs": 1}, quiet=True)
    assert first.last_checkpoint is not None
    limit = first.last_checkpoint.stat().st_size // 2
    code = (
        "import resource, signal, sys, unitrain\n"
        "from unitrain.errors import UnitrainError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "try:\n"
        "    unitrain.resume(sys.argv[1], {'trainer.max_epochs': 3, 'trainer.logger': False}, quiet=True)\n"
        "except UnitrainError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(first.run_dir)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    assert "can't be written" in done.stdout
    assert checkpoint_fault(first.last_checkpoint) is None
    assert torch.load(first.last_checkpoint, weights_only=True)["global_step"] == 8
    assert not list(first.run_dir.rglob("*.tmp"))


def test_command_line_resumes_the_last_run(settings: Path, project: Path) -> None:
    """`--resume last` names the run that it takes; `--config` with it only tells the experiment."""
    run = unitrain.fit(settings, OFF | {"trainer.max_epochs": 1}, quiet=True)
    command = [sys.executable, "-m", "unitrain", "fit", "--config", str(settings), "--resume", "last"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT_S, check=False, cwd=project.parent
    )
    assert done.returncode == 0, done.stderr
    assert f"--resume last is {run.run_dir}" in done.stderr
    assert "has finished" in done.stderr
    longer = subprocess.run(
        [*command, "--trainer.max_epochs", "2", "--json"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert longer.returncode == 0, longer.stderr
    assert json.loads(longer.stdout)["run_dir"] == str(run.run_dir)
    assert json.loads((run.run_dir / "run.json").read_text())["epoch"] == 2


def test_resume_auto_starts_a_run_and_resumes_it_whatever_lies_beside_it(
    settings: Path, project: Path
) -> None:
    """Half-written folders, damaged checkpoints and runs killed in set-up are skipped; a finished run is no obstacle."""
    short = OFF | {"trainer.max_epochs": 2, "trainer.max_steps": 5}
    first = unitrain.fit(settings, short, resume="auto", quiet=True)
    assert first.status == "finished"
    record = json.loads((first.run_dir / "run.json").read_text())
    (first.run_dir / "run.json").write_text(
        json.dumps(record | {"status": "running"})
    )  # as if it had been killed
    newer = first.run_dir.with_name("9999-01-01_00-00-00")
    for name, leaves in (
        ("", ()),
        ("-2", ("run.json",)),
        ("-3", ("run.json", "settings.yaml", "checkpoints")),
    ):
        place = newer.with_name(newer.name + name)
        place.mkdir()
        for leaf in leaves:
            copy = shutil.copytree if (first.run_dir / leaf).is_dir() else shutil.copy
            copy(first.run_dir / leaf, place / leaf)
    for checkpoint in newer.with_name(newer.name + "-3").glob("checkpoints/*.ckpt"):
        checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    resumed = unitrain.fit(settings, OFF | {"trainer.max_epochs": 2}, resume="auto", quiet=True)
    assert resumed.run_dir == first.run_dir
    again = unitrain.resume(
        "last", {"trainer.max_epochs": 2}, experiments_dir=project / "experiments", quiet=True
    )
    assert again.run_dir == first.run_dir
    fresh = unitrain.fit(settings, OFF | {"trainer.max_epochs": 1}, resume="auto", quiet=True)
    assert fresh.run_dir != first.run_dir
    assert fresh.status == "finished"


def test_run_says_what_is_not_exact(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In run.json, and on the console at the start."""
    run = unitrain.fit(settings, OFF | {"trainer.max_epochs": 1})
    assert json.loads((run.run_dir / "run.json").read_text())["exact_resume"] == {
        "exact": True,
        "reasons": [],
    }
    assert "not exact" not in capsys.readouterr().err
    run = unitrain.fit(settings, OFF | {"trainer.max_epochs": 1, "step_seeding": False})
    said = json.loads((run.run_dir / "run.json").read_text())["exact_resume"]
    assert (said["exact"], len(said["reasons"])) == (False, 1)
    assert "resuming is not exact: step_seeding is false" in capsys.readouterr().err


def test_checkpoints_keep_the_keys_of_earlier_names(settings: Path) -> None:
    """A callback's state is found in checkpoints that were written before its class was renamed."""
    run = unitrain.fit(settings, {"embeddings": None, "publish": None, "trainer.max_epochs": 1}, quiet=True)
    saved = torch.load(run.last_checkpoint, weights_only=True)["callbacks"]
    monitor = "{'monitor': 'val_loss', 'mode': 'min'"
    assert f"RunStopping{monitor}}}" in saved
    assert any(key.startswith(f"RunCheckpoint{monitor}") for key in saved)
    assert {"RunRecord", "DataFingerprint", "TensorBoardSummaries", "EMA"} <= set(saved)


@pytest.mark.usefixtures("ctrl_c_is_heard")
def test_a_run_that_is_killed_before_its_first_epoch_has_ended_resumes_exactly(
    settings: Path, project: Path
) -> None:
    """After kill -9 in the first epoch, also within a validation, it starts from the first step again."""
    source = project / "models" / "small.py"
    source.write_text(
        source.read_text() + "\n\nclass Killed(Curve):\n"
        "    def on_validation_end(self):\n"
        "        import os, pathlib\n"
        "        flag = pathlib.Path(__file__).with_name('killed')\n"
        "        if not self.trainer.sanity_checking and not flag.exists():\n"
        "            flag.touch()\n"
        "            os.kill(os.getpid(), 9)\n"
    )
    words = ["--model.class_path", "models.small.Killed", "--publish", "null", "--embeddings", "null"]
    command = [sys.executable, "-m", "unitrain", "fit", "--config", str(settings), *words]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -9
    [killed] = (project / "experiments/points").iterdir()
    saved = torch.load(killed / "checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 0
    resumed = unitrain.resume(killed, quiet=True)
    whole = unitrain.fit(
        settings, {"model.class_path": "models.small.Killed", "publish": None, "embeddings": None}, quiet=True
    )
    assert resumed.metrics == whole.metrics
    ends = [torch.load(r.last_checkpoint, weights_only=True)["state_dict"] for r in (resumed, whole)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])
    record = json.loads((killed / "run.json").read_text())
    assert record["exact_resume"] == {"exact": True, "reasons": []}
