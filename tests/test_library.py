"""The library of models and data modules: one name in settings and records, from a clone and from a wheel."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import yaml

import unitrain
from unitrain.class_paths import import_class
from unitrain.import_aliases import MOVED, canonical_name, former_name
from unitrain.repository.manifest import Metric
from unitrain.repository.ranking import _other_metric

ROOT = Path(__file__).resolve().parents[1]

SETTINGS = """
experiment: rows
model: {class_path: PREFIXmodels.mlp.MLP, init_args: {hidden: [8]}}
data:
  class_path: PREFIXdatamodules.tabular.CsvTable
  init_args: {file: rows.csv, target: y, batch_size: 16}
links:
  data.feature_means: model.init_args.feature_means
  data.feature_stds: model.init_args.feature_stds
  data.target_means: model.init_args.target_means
  data.target_stds: model.init_args.target_stds
trainer: {max_epochs: 1, enable_progress_bar: false}
"""


def python(code: str, cwd: Path, python: str = sys.executable) -> str:
    """Return what a program prints that runs in a folder."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", code],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write_project(folder: Path, prefix: str) -> Path:
    """Write a table and settings that train on it; return the settings' path."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{i % 7},{(i * 3) % 5},{i % 7 + 2 * ((i * 3) % 5)}\n" for i in range(80))
    (folder / "rows.csv").write_text("a,b,y\n" + rows)
    settings = folder / "settings.yaml"
    settings.write_text(SETTINGS.replace("PREFIX", prefix).replace("rows.csv", str(folder / "rows.csv")))
    return settings


@pytest.mark.parametrize(
    "first",
    [
        "import unitrain",
        "import models.unet",
        "from datamodules import tabular",
        "import unitrain.models.unet",
    ],
)
def test_both_names_are_one_object(first: str) -> None:
    """In a clone, whichever name is imported first."""
    code = (
        "import sys, unitrain, models.unet, datamodules, unitrain.models.unet as unet, unitrain.datamodules.tabular\n"
        "from datamodules.tabular import CsvTable\n"
        "assert models.unet.UNet is unet.UNet and sys.modules['models'] is unitrain.models\n"
        "assert CsvTable is unitrain.datamodules.tabular.CsvTable\n"
        "assert unet.UNet.__module__ == 'unitrain.models.unet' == models.unet.__spec__.name"
    )
    python(f"{first}\n{code}", ROOT)


@pytest.mark.parametrize("former", MOVED)
def test_modules_that_an_example_owns_now_are_found_by_their_former_names(former: str) -> None:
    """Settings of earlier runs name them."""
    code = f"import unitrain, sys, importlib\nassert importlib.import_module({former!r}) is sys.modules[{MOVED[former]!r}]"
    python(code, ROOT)


def test_names_are_translated_to_the_canonical_ones_and_back() -> None:
    """Names of a user's own packages remain."""
    for former, canonical in (
        ("models.unet.UNet", "unitrain.models.unet.UNet"),
        ("models.curve.CurveRegressor", "examples.curve_fitting.model.CurveRegressor"),
    ):
        assert canonical_name(former) == canonical == canonical_name(canonical)
        assert former_name(canonical) == former
    for name in ("models_of_mine.unet.UNet", "my.models.curve.Curve", "unitrain.module.UnitrainModule"):
        assert canonical_name(name) == name == former_name(name)


def test_metric_of_an_earlier_version_is_comparable() -> None:
    """Its manifest names the class as a clone spells it."""
    earlier, now = (
        Metric("val_loss", 0.5, "min", definition=f"{prefix}models.mlp.MLP") for prefix in ("", "unitrain.")
    )
    assert _other_metric(now, earlier) is None
    other = Metric("val_loss", 0.5, "min", definition="models.mlp.MLPClassifier")
    assert "computed by models.mlp.MLPClassifier" in str(_other_metric(now, other))


@pytest.mark.parametrize("prefix", ["", "unitrain."])
def test_a_run_of_the_clone_stores_the_canonical_names_and_the_sources(tmp_path: Path, prefix: str) -> None:
    """Whichever name its settings have; so they are the same run."""
    settings = write_project(tmp_path / "rows", prefix)
    overrides = {"experiments_dir": str(tmp_path / "experiments"), "publish": None}
    code = f"import unitrain; print(unitrain.fit({str(settings)!r}, {overrides!r}, quiet=True).run_dir)"
    run_dir = Path(python(code, ROOT).splitlines()[-1])
    stored = yaml.safe_load((run_dir / "settings.yaml").read_text())
    assert stored["model"]["class_path"] == "unitrain.models.mlp.MLP"
    assert stored["data"]["class_path"] == "unitrain.datamodules.tabular.CsvTable"
    for name in ("models/mlp.py", "datamodules/tabular.py"):
        assert (run_dir / "sources" / name).read_text() == (ROOT / name).read_text()


def test_a_project_s_own_module_of_the_same_name_wins(tmp_path: Path) -> None:
    """A user's models/unet.py is theirs, and the library's is found by its canonical name beside it."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "unet.py").write_text("class UNet:\n    mine = True\n")
    code = (
        "from pathlib import Path\nfrom unitrain.class_paths import import_class\n"
        f"root = Path({str(tmp_path)!r})\n"
        "for _ in range(2):\n"
        "    assert import_class('models.unet.UNet', root).mine\n"
        "    assert not hasattr(import_class('unitrain.models.unet.UNet', root), 'mine')\n"
        f"    library = import_class('models.unet.UNet', Path({str(ROOT)!r}))\n"
        "    assert library is import_class('unitrain.models.unet.UNet', root)\n"
    )
    python(code, tmp_path)
    (tmp_path / "models" / "__init__.py").touch()
    python(code, tmp_path)


def test_a_copy_of_the_library_s_folder_is_the_project_s(tmp_path: Path) -> None:
    """A user who copies models/ and edits it gets the edited classes."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text((ROOT / "models" / "__init__.py").read_text())
    (tmp_path / "models" / "mine.py").write_text("class Mine: pass\n")
    assert import_class("models.mine.Mine", tmp_path).__module__ == "models.mine"
    python("import models.mine, unitrain.models; assert models is not unitrain.models", tmp_path)


def test_library_class_by_its_short_name_outside_of_a_clone_is_refused_with_the_canonical_one(
    tmp_path: Path,
) -> None:
    """The message names the class path that works."""
    code = (
        "from pathlib import Path\nfrom unitrain.class_paths import import_class\n"
        "from unitrain.errors import SettingsError\n"
        f"try:\n    import_class('models.unet.UNet', Path({str(tmp_path)!r}))\n"
        "except SettingsError as error:\n    print(error)"
    )
    assert "did you mean `unitrain.models.unet.UNet`?" in python(code, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_wheel_trains_with_library_classes_outside_of_a_clone(tmp_path: Path) -> None:
    """Built and installed for real; a project's own models/ is beside the settings."""
    wheels = tmp_path / "wheels"
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", str(ROOT), "-w", str(wheels)],
        check=True, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    (wheel,) = wheels.glob("*.whl")
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    (installed,) = environment.glob("lib/python*/site-packages")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "-q", "--target", str(installed), str(wheel)],
        check=True, timeout=300,
    )  # fmt: skip
    # The other packages are those of this environment, without its editable install of unitrain.
    (installed / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    interpreter = str(environment / "bin" / "python")
    project = tmp_path / "project"
    settings = write_project(project, "unitrain.")
    (project / "models").mkdir()
    (project / "models" / "mlp.py").write_text("class MLP:\n    mine = True\n")
    code = (
        "import json, unitrain, models.mlp, unitrain.models.mlp\n"
        f"result = unitrain.fit({str(settings)!r}, quiet=True)\n"
        "print(json.dumps([str(result.run_dir), unitrain.models.mlp.__file__, models.mlp.MLP.mine]))"
    )
    run_dir, file, mine = json.loads(python(code, project, interpreter).splitlines()[-1])
    assert Path(file).is_relative_to(installed)
    assert mine
    record = json.loads((Path(run_dir) / "run.json").read_text())
    assert [entry["version"] for entry in record["published"]] == [1]
    assert record["versions"]["unitrain"] == unitrain.__version__
    stored = yaml.safe_load((Path(run_dir) / "settings.yaml").read_text())
    assert stored["model"]["class_path"] == "unitrain.models.mlp.MLP"
    assert not (Path(run_dir) / "sources" / "unitrain").exists()  # the version names them
    python(
        "import unitrain.cli; import unitrain.datamodules.csv_windows, unitrain.models.unet",
        tmp_path,
        interpreter,
    )
