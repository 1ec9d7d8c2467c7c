"""`lightning` and `pytorch_lightning` are one package, and what a LightningCLI wrote is read or refused in one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from time_limits import LIMIT_S

import unitrain
from unitrain.cli import main
from unitrain.errors import SettingsError
from unitrain.training.parsing.settings_check import check
from unitrain.training.parsing.settings_file import read_merged, read_settings

ORDERS = {
    "unitrain first": "import unitrain, lightning as L, pytorch_lightning as pl",
    "lightning first": "import lightning as L, unitrain, pytorch_lightning as pl",
    "pytorch_lightning first": "import pytorch_lightning as pl, unitrain, lightning as L",
}
SAME = """
import sys
import lightning.fabric, lightning_fabric
import lightning.pytorch.callbacks as nested
import pytorch_lightning.callbacks as own
from lightning.pytorch.loggers import CSVLogger
from pytorch_lightning.loggers import CSVLogger as Own
assert L.LightningModule is pl.LightningModule and nested is own and CSVLogger is Own
assert lightning.fabric is lightning_fabric and L.Fabric is lightning_fabric.Fabric
assert pl.__spec__.name == pl.__name__ and own.__spec__.name == own.__name__
"""
TINY = {"trainer.max_epochs": 1, "publish": None, "embeddings": None, "summaries": None}


@pytest.fixture
def docs_style(settings: Path) -> Path:
    """Settings of modules that import `lightning`."""
    content = {
        "model": {"class_path": "models.docs_style.Model"},
        "data": {"class_path": "models.docs_style.Data"},
    }
    settings.write_text(yaml.safe_dump(content))
    return settings


@pytest.mark.parametrize("order", ORDERS)
def test_both_names_are_the_same_modules(order: str) -> None:
    """Whichever was imported first, as long as unitrain was imported before the second."""
    command = [sys.executable, "-W", "ignore", "-c", ORDERS[order] + SAME]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr


def test_two_copies_of_lightning_are_refused_with_the_way_out(tmp_path: Path) -> None:
    """Both were imported before unitrain: nothing can make them one."""
    (tmp_path / "mine.py").write_text("import lightning as L\nclass Model(L.LightningModule): pass\n")
    code = (
        "import pytorch_lightning, lightning, unitrain\n"
        "unitrain.fit({'model': {'class_path': 'mine.Model'}, 'data': {'class_path': 'mine.Data'}}, quiet=True)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        cwd=tmp_path,
    )
    assert "mine.Model is of a second copy of Lightning" in done.stderr
    assert "import unitrain before them" in done.stderr


def test_modules_callbacks_and_loggers_of_both_names_train_together(docs_style: Path, tmp_path: Path) -> None:
    """A module and a callback by `lightning`, a callback by each name, and a logger by the nested one."""
    content = yaml.safe_load(docs_style.read_text())
    content["trainer"] = {
        "max_epochs": 2,
        "callbacks": [
            {"class_path": "models.docs_style.Counts"},
            {
                "class_path": "lightning.pytorch.callbacks.EarlyStopping",
                "init_args": {"monitor": "val_loss"},
            },
            {"class_path": "pytorch_lightning.callbacks.LearningRateMonitor"},
        ],
        "logger": {
            "class_path": "lightning.pytorch.loggers.CSVLogger",
            "init_args": {"save_dir": str(tmp_path)},
        },
    }
    docs_style.write_text(yaml.safe_dump(content))
    result = unitrain.fit(docs_style, {"embeddings": None}, quiet=True)
    assert result.published == [1]
    assert result.metrics["epochs_counted"] == 1
    assert list(tmp_path.glob("lightning_logs/*/metrics.csv"))
    assert list(result.run_dir.glob("events.out.tfevents.*"))


FLAT = {
    "seed_everything": 7,
    "trainer": {"max_epochs": 1, "logger": None},
    "model": {"hidden": 3, "lr": "1e-3"},
    "data": {"n": 32},
    "optimizer": None,
    "lr_scheduler": None,
    "ckpt_path": None,
    "weights_only": None,
}
CLASSES = ["--model.class_path", "models.docs_style.Model", "--data.class_path", "models.docs_style.Data"]


@pytest.mark.parametrize("layout", ["flat", "fit", "with classes"])
def test_a_config_that_a_lightning_cli_wrote_is_read(layout: str, settings: Path) -> None:
    """Saved flat, or below `fit:`; class-less sections take their class from a flag or a second file."""
    classes = {name: {"class_path": f"models.docs_style.{name.title()}"} for name in ("model", "data")}
    settings.write_text(yaml.safe_dump({"fit": FLAT, "validate": FLAT} if layout == "fit" else FLAT))
    flags = CLASSES
    if layout == "with classes":
        beside = settings.with_name("classes.yaml")
        beside.write_text(yaml.safe_dump(classes))
        flags = ["--config", str(beside)]
    assert main(["fit", "--config", str(settings), *flags, "--publish", "null", "--quiet"]) == 0
    (run,) = (settings.parent.parent / "experiments" / "problem").iterdir()
    resolved = yaml.safe_load((run / "settings.yaml").read_text())
    assert resolved["model"]["init_args"] == {"hidden": 3, "lr": 1e-3}
    assert resolved["data"]["init_args"]["n"] == 32
    assert (resolved["seed_everything"], resolved["trainer"]["max_epochs"]) == (7, 1)
    assert main(["fit", "--config", str(run / "settings.yaml"), "--publish", "null", "--quiet"]) == 0


REFUSED = {
    "class-less": (FLAT, "model: the section names no class, as in a config of LightningCLI(Model, Data)"),
    "another subcommand": ({"validate": FLAT}, "this is a LightningCLI config of the subcommand `validate`"),
    "a checkpoint": (FLAT | {"ckpt_path": "a.ckpt"}, "continue a run with --resume RUN"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_layout_that_names_no_training_is_refused_in_a_sentence(case: str, settings: Path) -> None:
    """The sentence says which layout it is and what to do; one a section, not one a key."""
    content, words = REFUSED[case]
    settings.write_text(yaml.safe_dump(content))
    with pytest.raises(SettingsError, match=words.replace("(", r"\(").replace(")", r"\)")):
        unitrain.fit(settings, quiet=True)
    if case == "class-less":
        assert len(check(settings).faults) == 2


def test_later_settings_files_override_earlier_ones(tmp_path: Path) -> None:
    """Mappings are merged at every depth, lists are replaced, and another class drops the earlier one's arguments."""
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text(
        "model: {class_path: a.B, init_args: {x: 1, y: 2}}\ndata: {class_path: a.D, init_args: {z: 1}}\n"
        "trainer: {max_epochs: 1, callbacks: [1, 2], precision: 32}"
    )
    second.write_text(
        "model: {init_args: {y: 1e-3}}\ndata: {class_path: a.E}\ntrainer: {max_epochs: 2, callbacks: [3]}"
    )
    assert read_merged([first, second]) == {
        "model": {"class_path": "a.B", "init_args": {"x": 1, "y": 1e-3}},
        "data": {"class_path": "a.E"},
        "trainer": {"max_epochs": 2, "callbacks": [3], "precision": 32},
    }


def test_several_configs_train_with_the_last_ones_values(docs_style: Path) -> None:
    """Also for check, and the run's settings are the merged ones."""
    over = docs_style.with_name("over.yaml")
    over.write_text("publish: null\nmodel: {init_args: {hidden: 5}}\ntrainer: {max_epochs: 1}")
    words = ["--config", str(docs_style), "--config", str(over)]
    assert main(["check", *words]) == 0
    assert main(["fit", *words, "--quiet"]) == 0
    (run,) = (docs_style.parent.parent / "experiments" / "problem").iterdir()
    resolved = read_settings(run / "settings.yaml")
    assert resolved["model"] == {
        "class_path": "models.docs_style.Model",
        "init_args": {"hidden": 5, "lr": 0.01},
    }
    assert resolved["trainer"]["max_epochs"] == 1


def test_print_config_prints_settings_that_train_and_makes_no_run(
    docs_style: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The printed YAML is a settings file with every default."""
    docs_style.write_text(yaml.safe_dump({"fit": FLAT}))
    with pytest.raises(SystemExit) as left:
        main(["fit", "--config", str(docs_style), *CLASSES, "--print_config"])
    assert left.value.code == 0
    printed = docs_style.with_name("printed.yaml")
    printed.write_text(capsys.readouterr().out)
    content = read_settings(printed)
    assert (content["model"]["init_args"]["hidden"], content["publish"]["keep"]) == (3, 5)
    assert not (project / "experiments").exists()
    assert check(printed).good


def test_a_function_may_be_a_class_path(docs_style: Path) -> None:
    """Its return annotation says what it makes, as in jsonargparse; one without is refused."""
    flags = ["--model.class_path", "models.docs_style.factory", "--model.init_args.width", "3"]
    assert main(["fit", "--config", str(docs_style), *flags, "--trainer.max_epochs", "1", "--quiet"]) == 0
    (run,) = (docs_style.parent.parent / "experiments" / "problem").iterdir()
    assert read_settings(run / "settings.yaml")["model"]["init_args"] == {"width": 3}
    with pytest.raises(
        SettingsError, match=r"`models\.docs_style\.bare`: a function must be annotated with the class"
    ):
        unitrain.fit(docs_style, {"model.class_path": "models.docs_style.bare"}, quiet=True)


def test_an_error_in_an_init_names_section_class_and_line(docs_style: Path, project: Path) -> None:
    """For fit and for check, with exit code 2."""
    source = project / "models" / "docs_style.py"
    line = source.read_text().splitlines().index('        {}["missing"]') + 1
    expected = f"model: Fails.__init__ failed at {source}:{line} with KeyError: 'missing'"
    with pytest.raises(SettingsError) as caught:
        unitrain.fit(docs_style, {"model.class_path": "models.docs_style.Fails"}, quiet=True)
    assert str(caught.value) == expected
    assert list(check(docs_style, ["--model.class_path", "models.docs_style.Fails"]).faults) == [expected]
