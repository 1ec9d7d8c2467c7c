"""A whole training, from settings to a run folder and published versions."""

import json
import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trained_project import Trained

import unitrain
from unitrain.class_paths import import_class
from unitrain.repository import Repository
from unitrain.repository.manifest import read_manifest
from unitrain.runs import list_runs
from unitrain.training.callbacks.run_record import improves
from unitrain.training.checkpoint import DurableCheckpointIO
from unitrain.training.console import Console


def test_fit_leaves_a_complete_run_folder(trained: Trained) -> None:
    """Settings, sources, record, checkpoints, events and embeddings are where they belong."""
    run, project, result = trained.run_dir, trained.project, trained.result
    assert run.parent == project / "experiments" / "points"
    assert (result["status"], result["exit_code"]) == ("finished", 0)
    assert (run / "sources/models/small.py").read_text() == (project / "models/small.py").read_text()
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["reason"] == "all 4 epochs done"
    assert (record["epoch"], record["step"], record["seed"]) == (4, 32, 7)
    assert record["root"] == str(project)
    assert record["best"]["value"] == pytest.approx(
        min(record["best"]["value"], record["metrics"]["val_loss"])
    )
    assert {"torch", "pytorch-lightning", "unitrain"} <= set(record["versions"])
    assert result["best_checkpoint"] == str(run / "checkpoints/best.ckpt")
    assert result["last_checkpoint"] == str(run / "checkpoints/last.ckpt")
    steps = {p.parent.name for p in (run / "embeddings").glob("*/projector_config.pbtxt")}
    assert steps == {"step_24", "step_32"}  # every three validations, and at the end
    [summary] = list_runs(project / "experiments", "points")
    assert summary.status == "finished"


def test_tensorboard_has_scalars_histograms_and_the_graph(settings: Path) -> None:
    """What a person looks at is in the run's event file."""
    run = unitrain.fit(settings, {"publish": None, "trainer.log_every_n_steps": 4}, quiet=True).run_dir
    events = EventAccumulator(str(run))
    events.Reload()
    tags = events.Tags()
    assert {"train_loss", "train_mse", "train_size", "val_loss", "val_mse", "val_MSE"} <= set(tags["scalars"])
    assert len(events.Scalars("val_loss")) == 4
    assert len(events.Scalars("train_loss")) == 8
    assert "weights/net.0.weight" in tags["histograms"]
    assert tags["graph"] is True


def test_published_graph_answers_as_the_averaged_weights_of_the_checkpoint(
    trained: Trained, project: Path
) -> None:
    """The last version is the EMA with preprocess and postprocess inside, at any batch size."""
    assert trained.result["published"] == [1, 2]
    repository = Repository(trained.project / "triton_repo")
    checkpoint = torch.load(trained.result["last_checkpoint"], weights_only=True)
    module = import_class("models.small.Curve", project)(scale=5.0)
    module.load_state_dict(checkpoint["state_dict"])
    module.eval()
    session = onnxruntime.InferenceSession(str(repository.version_dir("points", 2) / "model.onnx"))
    for rows in (1, 3, 100):
        x = np.random.default_rng(rows).uniform(-5, 5, (rows, 1)).astype(np.float32)
        y, positive = session.run(["y", "positive"], {"x": x})
        with torch.no_grad():
            expected = module.postprocess(module(**module.preprocess({"x": torch.from_numpy(x)})))
        np.testing.assert_allclose(y, expected["y"].numpy(), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(positive, expected["positive"].numpy())
    raw = checkpoint["current_model_state"]
    assert not torch.equal(raw["net.0.weight"], checkpoint["state_dict"]["net.0.weight"])


def test_manifest_tells_where_a_version_came_from(trained: Trained) -> None:
    """Run, step, metric, weights, parity and signature are in the manifest and the golden samples hold."""
    version_dir = Repository(trained.project / "triton_repo").version_dir("points", 2)
    manifest = read_manifest(version_dir)
    assert manifest is not None
    assert manifest.run == f"points/{trained.run_dir.name}"
    assert (manifest.step, manifest.weights, manifest.version) == (32, "ema", 2)
    assert manifest.metric is not None
    assert manifest.metric.value == pytest.approx(trained.result["metrics"]["val_loss"])
    assert set(manifest.parity) == {"y", "positive"}
    assert manifest.parity["y"]["max_abs"] < 1e-4
    golden = np.load(version_dir / "golden.npz")
    session = onnxruntime.InferenceSession(str(version_dir / "model.onnx"))
    [y] = session.run(["y"], {"x": golden["inputs/x"]})
    np.testing.assert_allclose(y, golden["outputs/y"], rtol=1e-6)


def test_a_plain_module_and_data_module_work_unchanged(settings: Path, project: Path) -> None:
    """A LightningModule without a hook of ours is trained, embedded, published under forward's names."""
    settings.write_text(
        "model: {class_path: models.small.Plain}\n"
        "data: {class_path: datamodules.points.TuplePoints}\n"
        "trainer: {max_epochs: 2, accelerator: cpu}\n"
    )
    result = unitrain.fit(settings, quiet=True)
    assert result.published == [1]
    signature = Repository(project / "triton_repo").signature("problem")  # the settings' folder's name
    assert signature is not None
    assert [t.name for t in signature.inputs] == ["x"]
    assert [t.name for t in signature.outputs] == ["output"]
    assert list((result.run_dir / "embeddings").glob("*/projector_config.pbtxt"))


def test_a_runs_own_settings_rerun_it_to_the_bit(trained: Trained, tmp_path: Path) -> None:
    """The resolved settings give the same weights, links included, publishing and embeddings on or off."""
    first = trained.copy_to(tmp_path / "copy")
    resolved = first / "settings.yaml"
    assert yaml.safe_load(resolved.read_text())["links"] == {"data.scale": "model.init_args.scale"}
    second = unitrain.fit(resolved, {"publish": None, "embeddings": None, "summaries": None}, quiet=True)
    paths = (first / "checkpoints/last.ckpt", second.last_checkpoint)
    a, b = (torch.load(path, weights_only=True) for path in paths)
    assert all(torch.equal(a["state_dict"][name], b["state_dict"][name]) for name in a["state_dict"])
    assert all(
        torch.equal(a["current_model_state"][name], b["current_model_state"][name])
        for name in a["state_dict"]
    )


def test_sections_set_to_null_are_off(settings: Path, project: Path) -> None:
    """Without EMA, publishing, embeddings and early stopping, a training is Lightning's own."""
    off = dict.fromkeys(("ema", "publish", "embeddings", "early_stopping", "summaries"))
    result = unitrain.fit(settings, off, quiet=True)
    assert not (project / "triton_repo").exists()
    assert not (result.run_dir / "embeddings").exists()
    assert "current_model_state" not in torch.load(result.last_checkpoint, weights_only=True)


def test_early_stopping_ends_the_run_as_stopped(settings: Path) -> None:
    """A metric that can't improve stops the training, which says so."""
    overrides = {
        "early_stopping.patience": 1,
        "early_stopping.min_delta": 1e9,
        "publish": None,
        "trainer.max_epochs": 50,
    }
    result = unitrain.fit(settings, overrides, quiet=True)
    assert result.status == "stopped"
    assert "val_loss" in result.reason
    assert json.loads((result.run_dir / "run.json").read_text())["epoch"] == 2


def test_last_checkpoint_is_the_last_even_when_nothing_improves(settings: Path) -> None:
    """`last` follows the training, `best` the metric."""
    overrides = {
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 1e-3, "maximize": True}},
        "publish": None,
        "ema": None,
    }
    result = unitrain.fit(settings, overrides, quiet=True)
    assert torch.load(result.last_checkpoint, weights_only=True)["global_step"] == 32
    assert torch.load(result.best_checkpoint, weights_only=True)["global_step"] == 8


def test_training_without_validation_data_publishes_all_the_same(settings: Path, project: Path) -> None:
    """Epochs count in the place of validations, and there is no best checkpoint."""
    result = unitrain.fit(settings, {"data.class_path": "datamodules.points.NoValidation"}, quiet=True)
    assert result.published == [1, 2]
    assert result.best_checkpoint is None
    assert result.last_checkpoint is not None


def test_settings_may_come_as_a_mapping(
    settings: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program need not write a file; the project is the one around the working folder."""
    monkeypatch.chdir(project)
    content = yaml.safe_load(settings.read_text()) | {"publish": None, "experiments_dir": Path("experiments")}
    overrides = {
        "trainer.max_epochs": np.int64(1),
        "model.init_args.hidden": np.int32(8),
    }  # as searches draw them
    result = unitrain.fit(content, overrides, quiet=True)
    assert result.run_dir.parent == project / "experiments" / "points"


def test_a_version_with_nan_weights_is_refused_and_training_goes_on(settings: Path, project: Path) -> None:
    """The gate's name and reason are in run.json; the versions before stay."""
    overrides = {
        "model.class_path": "models.small.Explodes",
        "publish.every_n_validations": 1,
        "early_stopping": None,
    }
    result = unitrain.fit(settings, overrides, quiet=True)
    assert result.published in (
        [1],
        [1, 2],
    )  # the second waits for the worker, and a later one may take its place
    assert Repository(project / "triton_repo").versions("points") == result.published
    refused = json.loads((result.run_dir / "run.json").read_text())["refused"]
    assert {entry["gate"] for entry in refused} == {"finite_weights"}
    assert "hold NaN" in refused[0]["reason"]


def test_an_exception_keeps_its_traceback_in_the_run_folder(settings: Path) -> None:
    """The person's own fault ends the run as failed, with the place where it happened."""
    with pytest.raises(RuntimeError, match="the person's own fault"):
        unitrain.fit(settings, {"model.class_path": "models.small.Raises", "publish": None}, quiet=True)
    [run] = (settings.parent.parent / "experiments/points").iterdir()
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    assert "small.py" in (run / "traceback.txt").read_text()


def test_a_users_own_callbacks_take_the_place_of_ours(
    settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their ModelCheckpoint and EarlyStopping are the only ones, and the console says so."""
    callbacks = [
        {"class_path": "pytorch_lightning.callbacks.ModelCheckpoint", "init_args": {"filename": "mine"}},
        {"class_path": "pytorch_lightning.callbacks.EarlyStopping", "init_args": {"monitor": "val_MSE"}},
    ]
    result = unitrain.fit(settings, {"trainer.callbacks": callbacks, "publish": None})
    said = capsys.readouterr().err
    assert "early stopping: the settings' own" in said
    assert "checkpoints: the settings' own" in said
    assert result.best_checkpoint is None


def test_a_modules_own_callbacks_and_several_validation_sets(settings: Path) -> None:
    """Its early stopping alone decides, the checkpoints to go on from stay, and each set has its own metrics."""
    changed = {
        "model.class_path": "models.small.BringsCallbacks",
        "data.class_path": "datamodules.points.TwoValidations",
        "monitor.metric": "val_loss/dataloader_idx_0",
        "early_stopping.patience": 0,
        "early_stopping.min_delta": 1e9,
        "publish": None,
    }
    result = unitrain.fit(settings, changed, quiet=True)
    assert json.loads((result.run_dir / "run.json").read_text())["epoch"] == 3
    assert (result.status, result.reason) == (
        "stopped",
        "val_MSE/dataloader_idx_1 no longer improved (early stopping)",
    )
    assert result.best_checkpoint is not None
    assert result.last_checkpoint is not None
    for number in (0, 1):
        told = result.metrics[f"val_MSE/dataloader_idx_{number}"]
        assert told == pytest.approx(result.metrics[f"val_mse/dataloader_idx_{number}"], rel=1e-5)


def test_streams_without_length_or_end_are_trained_on(settings: Path, project: Path) -> None:
    """With validation and without, which would be sampled for ever; inputs are served in the precision trained in."""
    settings.write_text(
        "model: {class_path: models.small.Plain}\ndata: {class_path: datamodules.points.Streams}\n"
        "trainer: {max_steps: 8, max_epochs: -1, val_check_interval: 4, accelerator: cpu, precision: 64-true}\n"
    )
    result = unitrain.fit(settings, quiet=True)
    assert (result.reason, result.published) == ("all 8 steps done", [1])
    signature = Repository(project / "triton_repo").signature("problem")
    assert signature is not None
    assert [t.dtype for t in signature.inputs] == ["FP64"]
    without = {"trainer.limit_val_batches": 0, "publish": None, "embeddings.max_points": 100}
    result = unitrain.fit(settings, without, quiet=True)
    assert list((result.run_dir / "embeddings").glob("*/projector_config.pbtxt"))


def test_what_forward_takes_may_be_in_no_batch(
    settings: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A generator is served by its `example_input_array`; that there are no embeddings is said."""
    settings.write_text(
        "model: {class_path: models.small.Generator}\ndata: {class_path: datamodules.points.TuplePoints}\n"
        "trainer: {max_epochs: 1, accelerator: cpu}\n"
    )
    assert unitrain.fit(settings).published == [1]
    assert "there are no embeddings: Generator.forward takes noise as" in capsys.readouterr().err
    signature = Repository(project / "triton_repo").signature("problem")
    assert signature is not None
    assert [(t.name, t.dims) for t in signature.inputs] == [("noise", (3, 1))]


def test_a_fast_dev_run_publishes_nothing(settings: Path, project: Path) -> None:
    """One batch is no model."""
    result = unitrain.fit(settings, {"trainer.fast_dev_run": True}, quiet=True)
    assert (result.status, result.published) == ("finished", [])


def test_the_best_metric_is_that_of_the_best_checkpoint() -> None:
    """A tie is no improvement, a NaN neither, whichever direction is better."""
    for mode, better, worse in (("min", 1.0, 2.0), ("max", 2.0, 1.0)):
        assert improves(better, None, mode)
        assert improves(better, worse, mode)
        assert not improves(worse, better, mode)
        assert not improves(better, better, mode)
        assert not improves(math.nan, None, mode)
        assert not improves(math.nan, better, mode)


def test_a_checkpoint_keeps_plain_data_and_tells_of_what_it_could_not_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers of numpy and paths come back; an object of a class would end every later command."""
    io = DurableCheckpointIO(Console())
    plain = {"score": np.float64(0.5), "counts": np.arange(3), "file": tmp_path}
    io.save_checkpoint(plain, tmp_path / "a.ckpt")
    loaded = io.load_checkpoint(tmp_path / "a.ckpt")
    assert (loaded["score"], loaded["counts"].tolist(), loaded["file"]) == (0.5, [0, 1, 2], tmp_path)
    assert not capsys.readouterr().err
    DurableCheckpointIO(Console()).save_checkpoint({"loss": torch.nn.MSELoss()}, tmp_path / "b.ckpt")
    assert "b.ckpt holds torch.nn.modules.loss.MSELoss, which is no plain data" in capsys.readouterr().err
