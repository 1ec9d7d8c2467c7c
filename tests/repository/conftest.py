"""A repository on a temporary disk, and a way to publish into it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import small_versions

from unitrain.repository import Repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A repository that is not there yet, under a path with a blank and an accent."""
    return Repository(tmp_path / "triton répo")


@pytest.fixture
def publish(repository: Repository) -> Callable[[], int]:
    """Publishes one more version of the model `codes`."""
    config = small_versions.config_of()
    return lambda: small_versions.publish(repository, config)
