"""The worker keeps the training free: latest request wins, errors are reported."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule
from time_limits import LIMIT_S
from torch import nn

from unitrain.errors import PublishRefused
from unitrain.onnx_export.module_weights import weights_of
from unitrain.publish import Lineage, Outcome, Publisher, Request, Worker
from unitrain.repository import Repository
from unitrain.settings import Publish


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return {"y": self.layer(x)}


def publisher(tmp_path: Path, module: LightningModule) -> Publisher:
    """A publisher into an empty repository."""
    return Publisher.prepare(
        module,
        {"x": torch.randn(4, 3)},
        repository=Repository(tmp_path / "repository"),
        model="net",
        settings=Publish(),
        lineage=Lineage("e/r", str(tmp_path)),
    )


def request(module: LightningModule, step: int) -> Request:
    """The module's weights at a step."""
    return Request(weights_of(module), "raw", step, 0)


def test_of_requests_that_wait_only_the_latest_is_published(tmp_path: Path) -> None:
    """A training that is faster than the disk skips versions, and never waits."""
    module, outcomes = Net(), list[Outcome]()
    began, go_on = threading.Event(), threading.Event()
    made = publisher(tmp_path, module)

    def report(outcome: Outcome) -> None:
        outcomes.append(outcome)
        began.set()
        go_on.wait(LIMIT_S)

    worker = Worker(made, report)
    worker.submit(request(module, 1))
    assert began.wait(LIMIT_S)
    for step in (2, 3, 4):
        worker.submit(request(module, step))
    go_on.set()
    worker.finish()
    assert [o.request.step for o in outcomes] == [1, 4]
    assert made.repository.versions("net") == [1, 2]


def test_the_same_step_is_never_published_twice(tmp_path: Path) -> None:
    """The end of a training that has just published adds nothing."""
    module, outcomes = Net(), list[Outcome]()
    worker = Worker(publisher(tmp_path, module), outcomes.append)
    worker.submit(request(module, 5))
    worker.submit(request(module, 5))
    worker.finish()
    worker.submit(request(module, 6))
    assert [o.request.step for o in outcomes] == [5]


def test_failures_are_reported_and_later_versions_published(tmp_path: Path) -> None:
    """A refused version and a full disk end nothing."""
    module, outcomes = Net(), list[Outcome]()
    made = publisher(tmp_path, module)
    worker = Worker(made, outcomes.append)
    broken: Any = request(module, 1)
    broken.weights["layer.bias"][:] = float("nan")
    worker.submit(broken)
    worker.finish()
    worker = Worker(made, outcomes.append)
    worker.submit(request(module, 2))
    worker.finish()
    assert isinstance(outcomes[0].error, PublishRefused)
    assert outcomes[1].manifest is not None
    assert outcomes[1].manifest.version == 1


def test_listener_that_fails_does_not_keep_later_versions_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A closed standard error, say."""
    module, seen = Net(), list[int]()

    def report(outcome: Outcome) -> None:
        seen.append(outcome.request.step)
        raise BrokenPipeError

    made = publisher(tmp_path, module)
    for step in (1, 2):
        worker = Worker(made, report)
        worker.submit(request(module, step))
        worker.submit(request(module, step + 10))
        worker.finish()
    assert {1, 2} <= {step % 10 for step in seen}
    assert len(made.repository.versions("net")) == len(seen)
    assert "could not be reported" in caplog.text


def test_damaged_record_of_the_newest_version_does_not_keep_later_ones_back(tmp_path: Path) -> None:
    """Nothing that is published depends on a manifest that was there before."""
    module, outcomes = Net(), list[Outcome]()
    made = publisher(tmp_path, module)
    for step in (1, 2):
        worker = Worker(made, outcomes.append)
        worker.submit(request(module, step))
        worker.finish()
        (made.repository.version_dir("net", step) / "manifest.json").write_text("{")
    assert [o.error for o in outcomes] == [None, None]
