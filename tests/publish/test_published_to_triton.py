"""What a publication writes besides a plain graph, as a real Triton takes it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule
from torch import nn
from triton_server import TritonServer
from tritonclient import grpc as tritonclient

from unitrain.client import Client
from unitrain.onnx_export.module_weights import weights_of
from unitrain.publish import Lineage, Outcome, Publisher, Request, Worker, figures_of, outcome_text
from unitrain.repository import Repository, read_config
from unitrain.settings import Publish, PublishModelConfig, PublishOnnx, PublishServer

NAMES = ["cat", "dog", "other animal"]


class Classifier(LightningModule):
    def __init__(self):
        super().__init__()
        self.class_names = NAMES
        self.layers = nn.Sequential(nn.Linear(4, 400), nn.ReLU(), nn.Linear(400, 3))

    def forward(self, x):
        return {"scores": self.layers(x)}


def prepared(root: Path, module: LightningModule, **options) -> Publisher:
    return Publisher.prepare(
        module,
        {"x": torch.randn(6, 4)},
        repository=Repository(root),
        model="animals",
        settings=Publish(**options),
        lineage=Lineage("e/r", str(root)),
    )


def test_labels_warm_up_and_weights_beside_the_graph_are_served(triton: TritonServer) -> None:
    """All at once: the classification extension names classes, the warm-up ran, and the answers are torch's."""
    torch.manual_seed(0)
    module = Classifier().eval()
    publisher = prepared(
        triton.repository,
        module,
        model_config=PublishModelConfig(model_warmup=True),
        onnx=PublishOnnx(external_data_above_bytes=1000),
    )
    publisher.publish(Request(weights_of(module), "raw", 1, 0))
    triton.wait_for("animals", 1)
    config = read_config(publisher.repository.config_path("animals"))
    assert len(config.model_warmup) == 1
    assert (publisher.repository.version_dir("animals", 1) / "model.onnx.data").stat().st_size >= 4 * 4 * 400
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(x))["scores"].numpy()
    with Client(triton.url) as client:
        np.testing.assert_allclose(client.predict("animals", x=x).outputs["scores"], expected, atol=1e-5)
    asked = tritonclient.InferInput("x", x.shape, "FP32")
    asked.set_data_from_numpy(x)
    wanted = tritonclient.InferRequestedOutput("scores", class_count=1)
    with tritonclient.InferenceServerClient(triton.url) as server:
        found = server.infer("animals", [asked], outputs=[wanted]).as_numpy("scores")
        ran = server.get_inference_statistics("animals").model_stats[0].execution_count
    names = [row[0].decode().split(":")[2] for row in found]
    assert names == [NAMES[row.argmax()] for row in expected]
    assert ran >= 3, "the warm-up and two requests"


def test_named_server_is_asked_for_each_version(triton: TritonServer, tmp_path: Path) -> None:
    """`publish.server.url`: waited for, and its answers to the golden samples compared with the published ones."""
    outcomes: list[Outcome] = []
    module = Classifier()
    publisher = prepared(triton.repository, module, server=PublishServer(triton.url))
    worker = Worker(publisher, outcomes.append)
    worker.submit(Request(weights_of(module), "raw", 1, 0))
    worker.finish()
    published, served = outcomes
    assert published.served is None
    assert figures_of(published)["version"] == 1
    assert served.served is not None
    assert served.served.passed is True
    assert "animals version 1 is served: 4 rows" in outcome_text(served)


@pytest.mark.parametrize("url", ["127.0.0.1:9", "nowhere"])
def test_server_that_is_not_there_is_told_and_keeps_no_version_back(tmp_path: Path, url: str) -> None:
    """The version is published all the same."""
    outcomes: list[Outcome] = []
    module = Classifier()
    publisher = prepared(tmp_path / "repository", module, server=PublishServer(url, timeout_s=0.5))
    worker = Worker(publisher, outcomes.append)
    worker.submit(Request(weights_of(module), "raw", 1, 0))
    worker.finish()
    assert [o.manifest.version for o in outcomes if o.manifest] == [1, 1]
    assert outcomes[1].served is not None
    assert outcomes[1].served.passed is False
    assert "is not served as published" in outcome_text(outcomes[1])
