"""One Triton for all client tests that do not hurt it."""

import client_models
import onnx_models
import pytest
from predict_process import run_predict
from triton_server import TritonServer


@pytest.fixture(scope="package")
def server(tmp_path_factory, triton_wheel):
    """A Triton with the models linear, two, picky and whole, shared by the tests."""
    folder = tmp_path_factory.mktemp("served")
    repository = folder / "repository"
    onnx_models.publish_model(repository, "linear")
    client_models.publish_two(repository)
    client_models.publish_picky(repository)
    client_models.publish_whole(repository)
    running = TritonServer(repository, log=folder / "triton.log")
    try:
        running.start()
        for name in ("linear", "two", "picky", "whole"):
            running.wait_for(name, 1)
        yield running
    finally:
        running.stop()


@pytest.fixture
def predict(server):
    """Run `predict` as a process against the shared server."""
    return lambda *words, **options: run_predict(*words, "--url", server.url, **options)
