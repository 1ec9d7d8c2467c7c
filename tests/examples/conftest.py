"""The commands of an example, for the tests that type them."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ROOT
from terminal import Terminal


@pytest.fixture(autouse=True)
def own_packages() -> None:
    """Forget the models and data modules of other tests' projects: here they are this repository's."""
    for top in ("models", "datamodules"):
        found = sys.modules.get(top)
        places = [str(path) for path in getattr(found, "__path__", ())]
        if found is not None and str(ROOT / top) not in places:
            for name in [n for n in sys.modules if n == top or n.startswith(f"{top}.")]:
                del sys.modules[name]


@pytest.fixture
def terminal(tmp_path: Path, triton_wheel: Path) -> Iterator[Terminal]:
    """A copy of what git tracks of the project for examples, as a fresh clone has it, and a points.csv of one's own."""
    project = tmp_path / "project"
    for name in ("models", "datamodules", "examples"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    (project / "triton_repo").mkdir()
    for path in (ROOT / "triton_repo").glob("pretrained*"):
        shutil.copytree(path, project / "triton_repo" / path.name)
    (project / "points.csv").write_text("x\n-2\n0\n3\n")
    typed = Terminal(project, tmp_path)
    try:
        yield typed
    finally:
        if typed.server is not None:
            typed.server.stop()
