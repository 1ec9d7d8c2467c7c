"""`validate` and `test` give the figures of fit, to the bit, of the checkpoint and the weights that are asked for."""

import json
import sys
from pathlib import Path

import pytest

import unitrain
from unitrain.cli import main
from unitrain.errors import HookError, RunError
from unitrain.training.console import Console
from unitrain.training.evaluation import evaluate

OFF = {"publish": None, "embeddings": None, "summaries": None, "early_stopping": None}


def test_best_and_last_have_the_figures_of_fit_to_the_bit(settings: Path) -> None:
    """Of a run whose best epoch is not its last, with dropout, batch norm and an average."""
    rising = {
        "trainer.max_epochs": 6,
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.02}},
    }
    run = unitrain.fit(
        settings, OFF | rising | {"monitor": {"metric": "val_size", "mode": "min"}}, quiet=True
    )
    assert run.best is not None
    best = evaluate(run.run_dir)
    assert best.metrics["val_size"] == run.best["value"]
    assert (best.step, best.epoch, best.weights) == (run.best["step"], run.best["epoch"], "ema")
    last = evaluate(run.run_dir, checkpoint="last")
    assert last.metrics == {name: v for name, v in run.metrics.items() if name.startswith("val_")}
    assert last.step == 48
    assert best.metrics != last.metrics


def test_a_validation_that_draws_has_the_figures_of_fit(settings: Path, project: Path) -> None:
    """Its random numbers are those of the same epoch and step, in the middle of an epoch too."""
    source = project / "models" / "small.py"
    source.write_text(
        source.read_text()
        + "\n\nclass Draws(Curve):\n"
        + "    def loss(self, inputs, outputs, batch):\n"
        + "        return super().loss(inputs, outputs, batch) | {'drawn': torch.rand(())}\n"
    )
    drawn = {"model.class_path": "models.small.Draws", "monitor.metric": "val_drawn"}
    run = unitrain.fit(
        settings, OFF | drawn | {"trainer.max_epochs": 3, "trainer.val_check_interval": 0.25}, quiet=True
    )
    assert run.best is not None
    best, last = evaluate(run.run_dir), evaluate(run.run_dir, checkpoint="last")
    assert (best.step, best.metrics["val_drawn"]) == (run.best["step"], run.best["value"])
    assert last.metrics["val_drawn"] == run.metrics["val_drawn"]
    assert best.step % 8, "the best is in the middle of an epoch: choose another seed"


def test_raw_weights_are_those_of_a_run_that_kept_no_average(settings: Path) -> None:
    """With `ema: null` the same training validates its raw weights."""
    averaged = unitrain.fit(settings, OFF | {"trainer.max_epochs": 2}, quiet=True)
    raw = unitrain.fit(settings, OFF | {"trainer.max_epochs": 2, "ema": None}, quiet=True)
    found = evaluate(averaged.run_dir, checkpoint="last", weights="raw")
    assert found.metrics == {name: v for name, v in raw.metrics.items() if name.startswith("val_")}
    assert found.metrics != evaluate(averaged.run_dir, checkpoint="last").metrics
    assert evaluate(raw.run_dir).weights == "raw"
    with pytest.raises(RunError, match="holds no averaged weights"):
        evaluate(raw.run_dir, weights="ema")


def test_evaluating_changes_nothing_in_the_run(settings: Path) -> None:
    """No file is added, none is written."""
    run = unitrain.fit(settings, OFF | {"trainer.max_epochs": 1}, quiet=True)
    before = {p: p.stat().st_mtime_ns for p in run.run_dir.rglob("*") if p.is_file()}
    evaluate(run.run_dir)
    assert {p: p.stat().st_mtime_ns for p in run.run_dir.rglob("*") if p.is_file()} == before


def test_damaged_checkpoint_is_named(settings: Path) -> None:
    """One flipped bit of a weight is found by its checksum; the other checkpoint is still of use."""
    run = unitrain.fit(settings, OFF | {"trainer.max_epochs": 1}, quiet=True)
    assert run.best_checkpoint is not None
    data = bytearray(run.best_checkpoint.read_bytes())
    data[data.find(b"data/0") + 100] ^= 1
    run.best_checkpoint.write_bytes(data)
    with pytest.raises(RunError, match=r"best\.ckpt is damaged \(.*\); take the run's other checkpoint"):
        evaluate(run.run_dir)
    assert evaluate(run.run_dir, checkpoint="last").step == 8
    run.best_checkpoint.unlink()
    with pytest.raises(RunError, match="has no checkpoint `best`; it has last"):
        evaluate(run.run_dir)


def test_drift_of_the_sources_is_shown(
    settings: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The changed file is named, beside the figures of the code as it is now."""
    run = unitrain.fit(settings, OFF | {"trainer.max_epochs": 1}, quiet=True)
    source = project / "models" / "small.py"
    source.write_text(source.read_text() + "\n# changed\n")
    found = evaluate(run.run_dir, console=Console())
    assert list(found.changed_sources) == ["models/small.py"]
    assert "changed since the run began: models/small.py" in capsys.readouterr().err


def test_test_measures_the_test_data(settings: Path, project: Path) -> None:
    """Once the data module has some; before that it is told that there are none."""
    run = unitrain.fit(settings, OFF | {"trainer.max_epochs": 1}, quiet=True)
    with pytest.raises(HookError, match=r"test: Points .*test_dataloader"):
        evaluate(run.run_dir, "test")
    source = project / "datamodules" / "points.py"
    text = source.read_text()
    assert (
        text.count("    def val_dataloader(self):\n        return ArrayLoader(self.val, batch_size=64)\n")
        == 1
    )
    source.write_text(
        text.replace(
            "    def val_dataloader",
            "    def test_dataloader(self):\n        return ArrayLoader(self.val, batch_size=64)\n\n    def val_dataloader",
            1,
        )
    )
    sys.modules.pop("datamodules.points")
    found = evaluate(run.run_dir, "test")
    assert found.metrics["test_MSE"] == pytest.approx(run.metrics["val_MSE"])


def test_command_prints_the_figures_as_json(
    settings: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is found by its name below the project's experiments; a setting may be changed."""
    run = unitrain.fit(settings, OFF | {"trainer.max_epochs": 1}, quiet=True)
    monkeypatch.chdir(settings.parent)
    capsys.readouterr()
    assert main(["validate", "--run", "last", "--json", "--trainer.limit_val_batches", "1"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["run_dir"] == str(run.run_dir)
    assert printed["metrics"]["val_loss"] == run.metrics["val_loss"]
    assert main(["test", "--run", "last", "--chekpoint", "best"]) == 2
    assert "did you mean --checkpoint?" in capsys.readouterr().err
    assert main(["validate"]) == 2
