"""The first step of a training finds a loss that broadcasts, NaN in the data, and a metric that nobody logs."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pytorch_lightning.callbacks import Callback

import unitrain
from unitrain.errors import HookError, UnitrainError, UsageError
from unitrain.training.callbacks.loss_shape_check import LossShapeCheck
from unitrain.training.parsing.settings_check import check

TINY = {"trainer.max_epochs": 1, "publish": None, "embeddings": None, "summaries": None, "ema": None}
FLAGS = ["--publish", "null"]


@pytest.fixture
def shapes(settings: Path) -> Path:
    """Settings of the modules above."""
    content = {
        "model": {"class_path": "models.shapes.Right"},
        "data": {"class_path": "models.shapes.Rows"},
        "trainer": {"limit_val_batches": 2},
    }
    settings.write_text(yaml.safe_dump(content))
    return settings


class Steps(Callback):
    """Counts the training steps that began."""

    begun = 0

    def on_train_batch_start(self, *_):
        self.begun += 1


def model(name: str) -> dict[str, str]:
    return {"model.class_path": f"models.shapes.{name}"}


BROADCAST = {
    "Mse": "mse_loss at {}:{} broadcasts [16, 1] against [16] to [16, 16]",
    "Huber": "huber_loss at {}:{} broadcasts [16, 1] against [16] to [16, 16]",
    "ByHand": "sub at {}:{} broadcasts [16, 1] against [16] to [16, 16]",
    "Weighted": "mul at {}:{} broadcasts [16, 1] against [16] to [16, 16]",
    "OnlyInValidation": "sub at {}:{} broadcasts [16, 1] against [16] to [16, 16]",
}


@pytest.mark.parametrize("name", BROADCAST)
def test_a_loss_that_broadcasts_is_refused_by_fit_and_check(name: str, shapes: Path, project: Path) -> None:
    """With both shapes and the line; no run folder remains."""
    source = project / "models" / "shapes.py"
    lines = source.read_text().splitlines()
    line = lines.index(f"class {name}(Right):") + 3
    words = BROADCAST[name].format(source, line)
    for sanity in (0, 2):
        with pytest.raises(HookError) as caught:
            unitrain.fit(shapes, TINY | model(name) | {"trainer.num_sanity_val_steps": sanity}, quiet=True)
        assert str(caught.value).startswith(words)
    report = check(shapes, [*FLAGS, "--model.class_path", f"models.shapes.{name}"])
    assert [step.text.startswith(words) for step in report.steps if not step.passed] == [True]
    if name != "OnlyInValidation":
        assert not list(project.glob("experiments/*/*"))


@pytest.mark.filterwarnings("ignore:Using a target size .*Size..1.....:UserWarning")
def test_broadcasting_on_purpose_is_none_of_it(shapes: Path) -> None:
    """Pairwise differences, `keepdim`, a scalar target and parameters train as they are."""
    assert unitrain.fit(shapes, TINY | model("Purposeful"), quiet=True).status == "finished"
    assert check(shapes, [*FLAGS, "--model.class_path", "models.shapes.Purposeful"]).good


def test_only_the_first_steps_are_looked_at(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of training and one of validation, whatever follows."""
    begun = []
    monkeypatch.setattr(
        "unitrain.training.callbacks.loss_shape_check.BroadcastCheck.__enter__",
        lambda self: begun.append(1) or torch.overrides.TorchFunctionMode.__enter__(self),
    )

    class Modes(Callback):
        def on_train_batch_end(self, *_):
            assert torch._C._len_torch_function_stack() == depth

    depth = torch._C._len_torch_function_stack()
    unitrain.fit(shapes, TINY | {"trainer.max_epochs": 2}, callbacks=[Modes()], quiet=True)
    assert len(begun) == 2
    assert torch._C._len_torch_function_stack() == depth
    assert LossShapeCheck().state_dict() == {}


def test_nan_in_a_batch_is_reported_as_such(shapes: Path) -> None:
    """The tensor and the sample, not the learning rate."""
    words = r"the data have NaN: batch\[0\], sample 4 of 16; remove or fill those values"
    overrides = TINY | {"data.init_args.nan_at": 20, "trainer.num_sanity_val_steps": 0}
    with pytest.raises(UnitrainError, match=words):
        unitrain.fit(shapes, overrides, quiet=True)
    report = check(shapes, [*FLAGS, "--data.init_args.nan_at", "4"])
    (failed,) = [step for step in report.steps if step.name == "loss"]
    assert "the data have NaN: batch[0], sample 4 of 16" in failed.text


def test_nan_in_arrays_is_reported_with_file_and_row(shapes: Path, tmp_path: Path) -> None:
    """Whatever the order in which the loader shuffles."""
    x = np.ones((50, 4), np.float32)
    target = np.ones((50, 1), np.float32)
    x[[7, 31], 2] = np.nan
    np.savez(tmp_path / "table.npz", features=x, target=target)
    content = {
        "model": {
            "class_path": "unitrain.models.mlp.MLP",
            "init_args": {"feature_means": [0.0] * 4, "feature_stds": [1.0] * 4},
        },
        "data": {
            "class_path": "unitrain.datamodules.arrays.InMemory",
            "init_args": {"train": str(tmp_path / "table.npz"), "validation_share": 0.1},
        },
        "early_stopping": None,
    }
    words = r"the data have NaN: batch\['features'\].* in the training data: .*table\.npz, row 7, .*row 31"
    with pytest.raises(UnitrainError, match=words):
        unitrain.fit(content | {"experiments_dir": str(tmp_path)}, TINY, quiet=True)


@pytest.mark.parametrize("sanity", [2, 0])
def test_a_metric_that_is_never_logged_leaves_no_run(sanity: int, shapes: Path, project: Path) -> None:
    """Found by the sanity check before the first step where the code names its metrics, else at the first validation."""
    steps = Steps()
    mistyped = "val_" + "loss"[:-1]  # no text of this file, in which a callback's names are looked for
    overrides = TINY | {"monitor.metric": mistyped, "trainer.num_sanity_val_steps": sanity}
    with pytest.raises(UsageError, match=r"never logs val_los; it logs val_loss; did you mean val_loss\?"):
        unitrain.fit(shapes, overrides, callbacks=[steps], quiet=True)
    assert steps.begun == (0 if sanity else 4)
    assert not list(project.glob("experiments/*/*"))


@pytest.mark.parametrize(
    ("name", "metric"),
    [("LogsLate", "val_score"), ("LogsInTraining", "train_loss"), ("LogsInTraining", "train_loss_epoch")],
)
def test_a_metric_of_a_later_validation_or_of_training_is_accepted(
    name: str, metric: str, shapes: Path
) -> None:
    """It is the best checkpoint's and early stopping's from when it is logged."""
    overrides = TINY | model(name) | {"monitor.metric": metric, "trainer.max_epochs": 4}
    result = unitrain.fit(shapes, overrides, quiet=True)
    assert result.status == "finished"
    assert result.best is not None
    assert result.best_checkpoint is not None
    flags = [*FLAGS, "--model.class_path", f"models.shapes.{name}", "--monitor.metric", metric]
    assert check(shapes, flags).good
