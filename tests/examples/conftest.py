"""The whole way of an example, for the tests that go it."""

from pathlib import Path

import pytest
from triton_server import TritonServer
from whole_way import WholeWay


@pytest.fixture
def whole_way(triton: TritonServer, tmp_path: Path) -> WholeWay:
    """A running server and folders of the test's own."""
    return WholeWay(triton, tmp_path)
