"""A real Triton for the tests that need one, and one trained project for all tests that only read a run."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from trained_project import Trained, train_once
from triton_server import TritonServer

from unitrain.serving.triton import wheel as install


@pytest.fixture(scope="session")
def triton_wheel() -> Path:
    """The unpacked Triton wheel, fetched into the cache where it isn't there yet."""
    return install.install()


@pytest.fixture
def triton(tmp_path: Path, triton_wheel: Path) -> Iterator[TritonServer]:
    """A running `serve` on an empty repository, on free ports; it is ended, at once, after the test."""
    server = TritonServer(tmp_path / "repository", log=tmp_path / "triton.log")
    try:
        yield server.start()
    finally:
        server.stop(timeout_s=0)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A project with one finished run, trained once for all workers. Tests must not change it."""
    folder = tmp_path_factory.getbasetemp()
    return train_once((folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "trained")
