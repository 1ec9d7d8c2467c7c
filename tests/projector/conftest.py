"""One running TensorBoard for all tests: each adds run folders of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard_server import TensorBoard


@pytest.fixture(scope="session")
def tensorboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TensorBoard]:
    """A TensorBoard that was started, and asked for its runs, before any snapshot was written."""
    server = TensorBoard(tmp_path_factory.mktemp("logs"))
    assert server.runs() == []
    yield server
    server.stop()


@pytest.fixture
def run_dir(tensorboard: TensorBoard, request: pytest.FixtureRequest) -> Path:
    """The test's own run folder below what TensorBoard shows."""
    number = len(list(tensorboard.log_dir.iterdir()))
    return tensorboard.log_dir / f"run {number} ä"
