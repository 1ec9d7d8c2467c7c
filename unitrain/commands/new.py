"""`new`: make a folder with a small working project to start from."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from unitrain.commands._parser import ArgumentParser, parse
from unitrain.errors import UsageError
from unitrain.repository.layout import check_model_name

TEMPLATE = Path(__file__).parent.parent / "template"
_PLACEHOLDER = "PROJECT"


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "new", "Make a folder with a small working project: settings, model, data, README."
    )
    parser.add_argument(
        "name", metavar="NAME", help="name of the folder, the experiment and the served model"
    )
    parser.add_argument(
        "--into", type=Path, default=Path(), metavar="DIR", help="parent folder of the project"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    options = parse(_parser(), argv)
    project = make_project(check_model_name(options.name), options.into)
    print(f"{project} is a working project; to train it:\n")
    print(f"  cd {project}\n  python -m unitrain fit --config settings.yaml")
    return 0


def make_project(name: str, into: Path) -> Path:
    """Make a project's folder atomically, and return its path.

    Args:
        name: name of the folder, the experiment and the served model.
        into: parent folder.

    Raises:
        UsageError: the name is taken, or the folder can't be written.
    """
    project = into / name
    if project.exists() or project.is_symlink():
        raise UsageError(f"new: {project} exists; choose another name, or another folder by --into")
    try:
        with tempfile.TemporaryDirectory(dir=into, prefix=f".{name}-") as work_dir:
            made = Path(work_dir, name)
            shutil.copytree(TEMPLATE, made, ignore=shutil.ignore_patterns("__pycache__"))
            (made / "gitignore").rename(made / ".gitignore")
            for path in (made / "settings.yaml", made / "README.md"):
                path.write_text(path.read_text().replace(_PLACEHOLDER, name))
            made.rename(project)
    except OSError as error:
        raise UsageError(f"new: {project} can't be made: {error.strerror}") from error
    return project
