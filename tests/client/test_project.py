"""Project root and class paths."""

from pathlib import Path

import pytest

from unitrain.class_paths import import_class, project_root
from unitrain.errors import SettingsError


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "curve_of_test.py").write_text("class Curve:\n    pass\nnumber = 3\n")
    (tmp_path / "examples" / "deep").mkdir(parents=True)
    monkeypatch.setattr("sys.path", __import__("sys").path[:])
    return tmp_path


def test_root_is_the_nearest_folder_with_models(project):
    """A settings file deep below finds the folder that has models/."""
    assert project_root(project / "examples" / "deep" / "settings.yaml") == project.resolve()


def test_root_is_the_working_folder_without_any_mark(tmp_path, monkeypatch):
    """Where nothing above marks a project, the working folder is it."""
    monkeypatch.chdir(tmp_path)
    marked = [
        p
        for p in (tmp_path, *tmp_path.parents)
        if (p / "models").is_dir() or (p / "pyproject.toml").is_file()
    ]
    assert project_root(tmp_path / "a.yaml") == (marked[0] if marked else Path.cwd())


def test_class_is_imported_from_the_root(project):
    """A class path resolves from the root, wherever the program was started."""
    assert import_class("models.curve_of_test.Curve", project).__name__ == "Curve"


def test_same_module_name_of_another_project_is_not_mixed_up(project, tmp_path_factory):
    """Two projects with models/curve_of_test.py in one process each get their own class."""
    first = import_class("models.curve_of_test.Curve", project)
    other = tmp_path_factory.mktemp("other")
    (other / "models").mkdir()
    (other / "models" / "curve_of_test.py").write_text("class Curve:\n    other = True\n")
    assert not hasattr(first, "other")
    assert import_class("models.curve_of_test.Curve", other).other
    assert not hasattr(import_class("models.curve_of_test.Curve", project), "other")


@pytest.mark.parametrize(
    ("class_path", "said"),
    [
        ("Curve", "expected `package.module.Class`, got `Curve`"),
        ("models.curve_of_test.Curvy", "`Curvy` does not exist in .*did you mean `Curve`"),
        ("models.curve_of_test.number", "`number` is not a class"),
        (
            "models.curve_of_tost.Curve",
            "no module `models.curve_of_tost`.*did you mean `models.curve_of_test`",
        ),
        ("models.broken.Curve", "failed at .*broken.py:2 with ZeroDivisionError: division by zero"),
        ("models.syntax.Curve", "failed at .*syntax.py:1 with SyntaxError"),
        ("models.needs.Curve", "needs `no_such_package_at_all`, which is not installed"),
    ],
)
def test_wrong_class_path_names_the_nearest_cause(project, class_path, said):
    """Each way a class path can be wrong has its own sentence."""
    (project / "models" / "broken.py").write_text("x = 0\ny = 1 / x\n")
    (project / "models" / "syntax.py").write_text("class (:\n")
    (project / "models" / "needs.py").write_text("import no_such_package_at_all\n")
    with pytest.raises(SettingsError, match=said):
        import_class(class_path, project)
