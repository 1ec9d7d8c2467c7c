"""Wrong settings are refused before the first epoch, in one sentence, and leave nothing behind."""

import subprocess
import sys
from pathlib import Path

import pytest

import unitrain
from unitrain.errors import UsageError

WRONG = {
    "unknown section": ({"pubish.keep": 3}, "did you mean `publish.keep`"),
    "unknown key": ({"publish.kep": 3}, "did you mean `publish.keep`"),
    "abbreviation": ({"trainer.max_epoch": 3}, "did you mean `trainer.max_epochs`"),
    "wrong type": ({"publish.keep": "many"}, "publish.keep: expected int, got many"),
    "wrong type of the trainer's": (
        {"trainer.max_epochs": "x"},
        "trainer.max_epochs: expected int or null, got x",
    ),
    "wrong type of the model's": (
        {"model.init_args.hidden": "x"},
        "model.init_args.hidden: expected int, got x",
    ),
    "unknown argument": (
        {"model.init_args.hiden": 3},
        "Curve has no argument `hiden`; did you mean `hidden`",
    ),
    "out of range": ({"publish.keep": 0}, "publish.keep must be at least 1, got 0"),
    "EMA out of range": ({"ema.decay": 1.5}, "ema.decay must be in [0, 1), got 1.5"),
    "wrong class": ({"model.class_path": "models.small.Curv"}, "Curv"),
    "no such module": ({"model.class_path": "models.smal.Curve"}, "models.smal"),
    "name with a slash": ({"publish.model": "a/b"}, "name"),
    "name of dots": ({"publish.model": ".."}, "name"),
    "experiment with a slash": ({"experiment": "../up"}, "experiment"),
    "unknown key of client_io": ({"client_io": {"class": "a.B"}}, "there is no setting `client_io.class`"),
    "none of the choices": (
        {"monitor.mode": "mim"},
        "monitor.mode: expected min or max, got mim; did you mean `min`?",
    ),
    "no such optimizer": (
        {"optimizer": {"class_path": "torch.optim.Adm"}},
        "optimizer: there is no class Adm in torch.optim; did you mean `torch.optim.Adam`?",
    ),
    "no such callback by its short name": (
        {"trainer.callbacks": "EarlyStoping"},
        "got EarlyStoping; did you mean `pytorch_lightning.callbacks.EarlyStopping`?",
    ),
    "list in the place of a section": ({"publish": [1]}, "publish: expected a mapping or null, got [1]"),
    "accelerator": ({"trainer.accelerator": "abacus"}, "abacus"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_setting_is_refused_before_a_run_folder_is_made(
    case: str, settings: Path, project: Path
) -> None:
    """Exit code 2, the place and the remedy in the message, no folder."""
    overrides, words = WRONG[case]
    with pytest.raises(UsageError) as caught:
        unitrain.fit(settings, overrides, quiet=True)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert not list(project.glob("experiments/*/*"))
    assert not (project / "triton_repo").exists()


WRONG_FILES = {
    "no YAML": ("a: [", "no valid YAML"),
    "a section twice": (
        "trainer: {max_epochs: 3}\nmodel: {}\ntrainer: {accelerator: cpu}",
        "`trainer` stands twice in one mapping, expected once; remove one of the two",
    ),
    "no mapping": ("- a", "expected a mapping"),
    "a class path that is not there": ("model: {class_path: models.gone.Model}", "models.gone"),
    "a link from nowhere": (
        (
            "model: {class_path: models.small.Curve}\ndata: {class_path: datamodules.points.Points}\n"
            "links: {data.scal: model.init_args.scale}"
        ),
        "Points has no scal after its __init__; did you mean scale?",
    ),
    "a link to nowhere": (
        (
            "model: {class_path: models.small.Curve}\ndata: {class_path: datamodules.points.Points}\n"
            "links: {data.scale: model.init_args.scal}"
        ),
        "Curve has no argument scal; did you mean scale?",
    ),
    "a link to a value that is given": (
        (
            "model: {class_path: models.small.Curve, init_args: {scale: 2}}\n"
            "data: {class_path: datamodules.points.Points}\nlinks: {data.scale: model.init_args.scale}"
        ),
        "also give model.init_args.scale a value",
    ),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_wrong_settings_file_is_refused(case: str, settings: Path, project: Path) -> None:
    """What is wrong with the file itself is said likewise."""
    content, words = WRONG_FILES[case]
    settings.write_text(content)
    with pytest.raises(UsageError) as caught:
        unitrain.fit(settings, quiet=True)
    assert words in str(caught.value)
    assert not list(project.glob("experiments/*/*"))


def test_missing_settings_file_names_those_there_are(settings: Path) -> None:
    """A mistyped name is answered with the right one."""
    with pytest.raises(UsageError, match=r"there is no file .*setings\.yaml; there is .*settings\.yaml"):
        unitrain.fit(settings.with_name("setings.yaml"))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("DependsOnData", r"DependsOnData: a row's answer depends on the other rows of its batch"),
        ("NoForward", r"NoForward\.forward is not defined: .* takes `publish: null`"),
        ("Lazy", r"Lazy: layer\.weight has no shape at the start of the training; run forward once"),
        ("Takes", r"Takes\.forward fails on a sample of x \[16, 1\]: .*; set example_input_array"),
    ],
)
def test_model_that_cannot_be_exported_is_refused_before_the_first_epoch(
    model: str, words: str, settings: Path, project: Path
) -> None:
    """The sentence names what no graph can serve, or what is missing."""
    if model != "DependsOnData":
        settings.write_text(settings.read_text().replace("links:", "# links:"))
    with pytest.raises(UsageError, match=words):
        unitrain.fit(settings, {"model.class_path": f"models.small.{model}"}, quiet=True)
    assert not list(project.glob("experiments/*/*"))
    assert not (project / "triton_repo" / "points").exists()


def test_unwritable_repository_is_refused_before_the_first_epoch(settings: Path, project: Path) -> None:
    """A file in the place of the repository is named, and no run folder stays."""
    (project / "triton_repo").write_text("a file")
    with pytest.raises(UsageError, match=r"publish\.repository: .*triton_repo"):
        unitrain.fit(settings, quiet=True)
    assert not list(project.glob("experiments/*/*"))


def test_changed_signature_is_refused_with_both_side_by_side(settings: Path, project: Path) -> None:
    """Clients of the model that is served would break: the ways out are named."""
    unitrain.fit(settings, {"trainer.max_epochs": 1}, quiet=True)
    overrides = {
        "model.class_path": "models.small.Plain",
        "data.class_path": "datamodules.points.TuplePoints",
    }
    settings.write_text(settings.read_text().replace("links:", "# links:"))
    with pytest.raises(UsageError) as caught:
        unitrain.fit(settings, overrides, quiet=True)
    assert "positive: BOOL[]" in str(caught.value)
    assert "output: FP32[1]" in str(caught.value)
    assert "publish.model" in str(caught.value)
    assert len(list((project / "experiments/points").iterdir())) == 1


def test_metric_that_is_never_logged_is_refused_with_those_that_are(settings: Path) -> None:
    """At the first validation, before anything is published."""
    with pytest.raises(UsageError, match=r"never logs val_los; it logs .*val_MSE.*did you mean val_loss\?"):
        unitrain.fit(settings, {"monitor.metric": "val_los"}, quiet=True)


def test_command_line_prints_one_sentence_and_exits_2(settings: Path) -> None:
    """No traceback, nothing but the error on standard error."""
    command = [sys.executable, "-m", "unitrain", "fit", "--config", str(settings), "--trainer.max_epoch", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert (
        done.stderr == "error: there is no setting `trainer.max_epoch`; did you mean `trainer.max_epochs`?\n"
    )
    assert done.stdout == ""
