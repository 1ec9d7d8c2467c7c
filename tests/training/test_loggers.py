"""TensorBoard stays beside the user's loggers, profilers write their report, and axes are freed by settings."""

import json
from pathlib import Path

import pytest
import yaml

import unitrain
from unitrain.cli import main
from unitrain.errors import UsageError
from unitrain.training.parsing.settings_check import check

TINY = {"trainer.max_epochs": 1, "publish": None, "embeddings": None, "client_io": None}


def csv(folder: Path) -> dict[str, object]:
    return {"class_path": "pytorch_lightning.loggers.CSVLogger", "init_args": {"save_dir": str(folder)}}


@pytest.mark.parametrize("form", ["one", "list", "appended"])
def test_tensorboard_stays_beside_another_logger(
    form: str, settings: Path, project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """However it is given, and the console says so."""
    words = ["fit", "--config", str(settings)]
    words += [f"--{name}={'null' if value is None else value}" for name, value in TINY.items()]
    if form == "appended":
        words += ["--trainer.logger+=CSVLogger", f"--trainer.logger.save_dir={tmp_path}"]
    else:
        given = csv(tmp_path)
        words += [f"--trainer.logger={json.dumps(given if form == 'one' else [given])}"]
    assert main(words) == 0
    (run,) = (project / "experiments" / "points").iterdir()
    assert list(run.glob("events.out.tfevents.*"))
    assert "val_loss" in next(tmp_path.glob("lightning_logs/*/metrics.csv")).read_text()
    assert "loggers: TensorBoard in the run folder, and CSVLogger" in capsys.readouterr().err


def test_logger_false_and_a_tensorboard_logger_of_ones_own_leave_ours_out(
    settings: Path, tmp_path: Path
) -> None:
    """These two are the ways to have none in the run's folder."""
    own = {
        "class_path": "pytorch_lightning.loggers.TensorBoardLogger",
        "init_args": {"save_dir": str(tmp_path)},
    }
    for given, events in ((False, 0), (own, 1)):
        result = unitrain.fit(settings, TINY | {"trainer.logger": given}, quiet=True)
        assert not list(result.run_dir.glob("events.out.tfevents.*"))
        assert len(list(tmp_path.glob("lightning_logs/*/events.out.tfevents.*"))) == events


@pytest.mark.filterwarnings("ignore:The PyTorch Profiler default schedule:UserWarning")
@pytest.mark.parametrize("profiler", ["simple", "advanced", "pytorch"])
def test_a_profiler_writes_its_report_into_the_run_folder(
    profiler: str, settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the console says where it is."""
    result = unitrain.fit(settings, TINY | {"trainer.profiler": profiler})
    (report,) = (result.run_dir / "profile").glob("*.txt")
    # torch's own report has the 20 costliest operators, whichever these are.
    assert ("Self CPU time total" if profiler == "pytorch" else "training_step") in report.read_text()
    assert f"the profiler's report is {report}" in capsys.readouterr().err


def test_axes_are_freed_by_settings(settings: Path, project: Path) -> None:
    """A plain module's input may have any length, and the module's own attribute gives way."""
    source = project / "models" / "small.py"
    source.write_text(
        source.read_text() + "\n\nclass Mean(Plain):\n    def forward(self, x):\n"
        "        return self.layer(x.mean(1, keepdim=True)) + 0 * x.cumsum(1)[:, -1:]\n"
        "    def training_step(self, batch, batch_idx):\n"
        "        return nn.functional.mse_loss(self(batch['x']), batch['target'])\n"
        "    def validation_step(self, batch, batch_idx):\n"
        "        self.log('val_loss', self.training_step(batch, batch_idx))\n"
    )
    content = yaml.safe_load(settings.read_text())
    content["model"] = {"class_path": "models.small.Mean"}
    content.pop("links", None)
    content["client_io"] = None
    settings.write_text(yaml.safe_dump(content))
    publish = {"publish.onnx.dynamic_axes": {"x": {1: "steps"}}}
    report = check(settings, ["--publish.onnx.dynamic_axes", "{x: {1: steps}}"])
    assert report.good, report
    (step,) = [step for step in report.steps if step.name == "publish"]
    assert "x: FP32[?]" in step.text
    result = unitrain.fit(settings, publish | {"trainer.max_epochs": 1, "embeddings": None}, quiet=True)
    config = (project / "triton_repo" / "points" / "config.pbtxt").read_text()
    assert result.published == [1]
    assert "-1" in config[config.index("input") : config.index("output")]


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"y": {1: "steps"}}, "publish.onnx.dynamic_axes: there is no input y; the inputs are x"),
        (
            {"x": {2: "steps"}},
            "publish.onnx.dynamic_axes.x: there is no axis 2 in an input of shape [16, 1]; its axes are 1",
        ),
        (
            {"x": {0: "rows"}},
            "publish.onnx.dynamic_axes.x: expected axes from 1 on (0 is the batch) with a name",
        ),
        (
            {"x": {1: "a b"}},
            "publish.onnx.dynamic_axes.x: expected axes from 1 on (0 is the batch) with a name",
        ),
    ],
)
def test_wrong_axes_are_refused_with_the_valid_ones(
    axes: dict[str, dict[int, str]], words: str, settings: Path, project: Path
) -> None:
    """Before the first epoch, and by check."""
    with pytest.raises(UsageError) as caught:
        unitrain.fit(settings, {"publish.onnx.dynamic_axes": axes}, quiet=True)
    assert words in str(caught.value)
    assert not list(project.glob("experiments/*/*"))
    report = check(settings, ["--client_io", "null", "--publish.onnx.dynamic_axes", json.dumps(axes)])
    told = [*report.faults, *(step.text for step in report.steps if not step.passed)]
    assert [words in text for text in told] == [True]
