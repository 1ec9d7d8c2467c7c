"""`check` tells everything that is wrong with a settings file at once, and leaves nothing behind."""

import json
from pathlib import Path

import pytest
import yaml

import unitrain
from unitrain.cli import main
from unitrain.training.parsing.settings_check import check

NO_CLIENT = ["--client_io", "null"]  # the project has none
BAD = """
experiment: points
monitr: {metric: val_loss}
monitor: {metric: val_loss, mode: mim}
model: {class_path: models.small.Curve, init_args: {hiden: 3, scale: 2}}
data: {class_path: datamodules.points.Points, init_args: {batch_size: x}}
links: {data.scal: model.init_args.scale, model.x: data.init_args.n}
trainer:
  max_epoch: 4
  accelerator: abacus
  callbacks: [{class_path: pytorch_lightning.callbacks.ModelCheckpoint, init_args: {filenam: x}}]
publish: {every_n_validations: 0, kep: 3, model: a/b}
ema: {decay: 1.5, decay_warm: true}
client_io: {class_path: problem.client.Anything}
optimizer: {class_path: torch.optim.Adm}
"""
FAULTS = [
    "there is no setting `monitr.metric`; did you mean `monitor.metric`?",
    "monitor.mode: expected min or max, got mim; did you mean `min`?",
    "Curve has no argument `hiden`; did you mean `hidden`?",
    "data.init_args.batch_size: expected int, got x",
    "the settings also give model.init_args.scale a value",
    "Points has no scal after its __init__; did you mean scale?",
    "links: model.x: data.init_args.n: a link starts at `data.NAME`",
    "there is no setting `trainer.max_epoch`; did you mean `trainer.max_epochs`?",
    "trainer: You selected an invalid accelerator name: `accelerator='abacus'`",
    "trainer.callbacks.init_args: ModelCheckpoint has no argument `filenam`; did you mean `filename`?",
    "publish.every_n_validations must be at least 1, got 0",
    "there is no setting `publish.kep`; did you mean `publish.keep`?",
    "publish.golden.samples: expected int, got many",
    "publish.model: a model's name has",
    "ema.decay must be in [0, 1), got 1.5",
    "there is no setting `ema.decay_warm`; did you mean `ema.decay_warmup`?",
    "client_io: class path `problem.client.Anything`: there is no module `problem.client`",
    "optimizer: there is no class Adm in torch.optim; did you mean `torch.optim.Adam`?",
]


def files(root: Path) -> set[Path]:
    """Everything in the project, but for what Python itself keeps of imported modules."""
    return {path for path in root.rglob("*") if "__pycache__" not in path.parts}


def failed(settings: Path, *flags: str) -> dict[str, str]:
    """What the dry run could not do, by step."""
    report = check(settings, [*NO_CLIENT, *flags])
    assert list(report.faults) == []
    return {step.name: step.text for step in report.steps if not step.passed}


def test_all_faults_are_in_one_report(
    settings: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the file and of the flags, one sentence each, none twice; exit code 2 and no dry run."""
    settings.write_text(BAD)
    before = files(project)
    assert main(["check", "--config", str(settings), "--publish.golden.samples", "many", "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert [words for words in FAULTS if not any(words in fault for fault in report["faults"])] == []
    assert len(report["faults"]) == len(FAULTS)
    assert not any("\n" in fault for fault in report["faults"])
    assert (report["good"], report["dry_run"]) == (False, [])
    assert files(project) == before


def test_good_settings_are_tried_and_nothing_is_left_behind(
    settings: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No run folder, no version, no repository, and nothing of what a callback of the settings would write."""
    content = yaml.safe_load(settings.read_text())
    mine = {"dirpath": str(project / "mine"), "every_n_train_steps": 1}
    content["trainer"] |= {
        "callbacks": [{"class_path": "pytorch_lightning.callbacks.ModelCheckpoint", "init_args": mine}],
        "accumulate_grad_batches": 3,
        "val_check_interval": 0.5,
    }
    settings.write_text(yaml.safe_dump(content))
    before = files(project)
    assert main(["check", "--config", str(settings), *NO_CLIENT]) == 0
    said = capsys.readouterr().out
    assert "one batch of training and one of validation; logged: train_loss" in said
    assert "val_loss is logged" in said
    assert "x: FP32[1] -> y: FP32[1], positive: BOOL[]; parity" in said
    assert said.endswith("nothing is wrong\n")
    assert files(project) == before


def test_dry_run_tells_all_that_fails_in_it(settings: Path, project: Path) -> None:
    """A loss that is no number, a metric that is never logged, a hook, the graph, the folder of runs: each beside the others."""
    source = project / "models" / "small.py"
    source.write_text(
        source.read_text()
        + "\n\nclass Wrong(DependsOnData):\n"
        + "    def labels(self, batch):\n        return {'side': batch['sides']}\n"
        + "    def loss(self, inputs, outputs, batch):\n        return outputs['y'].sum() * float('nan')\n"
    )
    (project / "experiments").write_text("a file")
    before = files(project)
    found = failed(settings, "--model.class_path", "models.small.Wrong", "--monitor.metric", "val_los")
    assert set(found) == {"loss", "monitor", "hooks", "publish", "experiments"}
    assert found["monitor"].endswith("did you mean val_loss?")
    assert found["loss"].startswith("the loss of the first training batch is nan")
    assert "KeyError" in found["hooks"]
    assert "small.py:" in found["hooks"]
    assert "depends on the other rows of its batch" in found["publish"]
    assert files(project) == before


def test_fault_of_the_persons_code_is_told_with_its_line(settings: Path, project: Path) -> None:
    """Of the training step itself, after which nothing else can be tried but the folders."""
    source = project / "models" / "small.py"
    source.write_text(
        source.read_text()
        + "\n\nclass Fails(Curve):\n"
        + "    def training_step(self, batch, batch_idx):\n        return batch['nothing']\n"
    )
    line = len(source.read_text().splitlines())
    found = failed(settings, "--model.class_path", "models.small.Fails")
    assert found == {"training": f"KeyError at {source}:{line}: 'nothing'"}


def test_served_model_with_another_signature_is_found(settings: Path, project: Path) -> None:
    """Clients of the one that is served would break; a run's own settings file is in order."""
    run = unitrain.fit(settings, {"trainer.max_epochs": 1, "embeddings": None, "client_io": None}, quiet=True)
    before = files(project)
    assert check(run.run_dir / "settings.yaml").good
    settings.write_text(settings.read_text().replace("links:", "# links:"))
    flags = [
        "--model.class_path",
        "models.small.Plain",
        "--data.class_path",
        "datamodules.points.TuplePoints",
    ]
    found = failed(settings, *flags)
    assert set(found) == {"publish"}
    assert "positive: BOOL[]" in found["publish"]
    assert files(project) == before


def test_missing_settings_file_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, and the sentence says which file."""
    assert main(["check", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "there is no file" in capsys.readouterr().err
    assert main(["check"]) == 2
