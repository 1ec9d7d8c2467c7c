"""A small project of a person's own, the one that the tests of training have."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The project's root."""
    root = tmp_path / "a project"
    shutil.copytree(Path(__file__).parent.parent / "training" / "project", root)
    return root


@pytest.fixture
def settings(project: Path) -> Path:
    """The project's settings file."""
    return project / "problem" / "settings.yaml"
