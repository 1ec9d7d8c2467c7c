"""Every example's settings files."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from unitrain.class_paths import import_class, project_root

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = sorted((ROOT / "examples").glob("*/settings*.yaml"))

every_file = pytest.mark.parametrize("path", SETTINGS, ids=lambda path: f"{path.parent.name}-{path.stem}")


@every_file
def test_named_classes_take_the_options_that_the_settings_give(path: Path) -> None:
    """Each class path can be imported, and each init argument and link is one of its arguments."""
    settings = yaml.safe_load(path.read_text())
    assert project_root(path.parent) == ROOT
    for section in {"model", "data", "client_io"} & set(settings):
        kind = import_class(settings[section]["class_path"], ROOT)
        given = settings[section].get("init_args", {})
        linked = [t.rpartition(".")[2] for t in settings.get("links", {}).values() if t.startswith(section)]
        assert {*given, *linked} <= set(inspect.signature(kind).parameters)


@every_file
def test_links_start_at_properties_of_the_data_module(path: Path) -> None:
    """The data module is made of what is shipped, and each link's source is there right after."""
    settings = yaml.safe_load(path.read_text())
    data = import_class(settings["data"]["class_path"], ROOT)(**settings["data"].get("init_args", {}))
    for source in settings.get("links", {}):
        assert getattr(data, source.removeprefix("data.")) is not None


@every_file
def test_experiment_is_named_as_its_file_and_explained_beside(path: Path) -> None:
    """So that a run, a served model and a README are found from one another, and no two files share an experiment."""
    suffix = path.stem.removeprefix("settings")
    assert yaml.safe_load(path.read_text())["experiment"] == path.parent.name + suffix
    assert path.name in (path.parent / "README.md").read_text()


@every_file
def test_client_runs_where_there_is_no_torch(path: Path) -> None:
    """What asks a server can be imported where torch and Lightning can't."""
    client = yaml.safe_load(path.read_text()).get("client_io")
    if client is None:
        return  # the generic client, which has a test of its own
    module = client["class_path"].rpartition(".")[0]
    code = f"import sys; sys.modules.update(torch=None, pytorch_lightning=None); import {module}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
