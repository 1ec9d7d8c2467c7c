"""A real Triton for the tests that ask for one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
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
