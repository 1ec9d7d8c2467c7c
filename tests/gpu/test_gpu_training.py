"""Training, averaging, resuming, publishing and a hot swap with the weights on a GPU.

The same tests run on the CPU, where each of them must hold as well.
"""

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import pytorch_lightning as pl
import torch
from corpus import load_all
from corpus.case import CASES, Case, Small, case
from corpus.judge import LiveAnswers, compare_version, judge, settings_of, step_of, train
from onnx import numpy_helper
from triton_server import TritonServer

import unitrain
from unitrain.client import Client

load_all()

# cuBLAS repeats itself to the bit only with a fixed workspace, which it reads when it starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

CUDA = pytest.param(
    "cuda",
    marks=(
        pytest.mark.gpu,
        pytest.mark.skipif(
            not torch.cuda.is_available(), reason="torch.cuda.is_available() is false: there is no GPU"
        ),
    ),
)
SCALER_ONLY_ON_GPU = "16-mixed trains on a GPU alone: its gradient scaler is CUDA's"

PATTERNS = [
    "BareLightningModule",
    "EfficientNetLike",
    "CausalLanguageModel",
    "BidirectionalLSTM",
    "RawBatchNorm",
    "PrivateTemperature",
    "CurrentEpoch",
    "AverageByHandModule",
    "QueueBuffer",
    "ByteImages",
    "ManualOptimization",
    "DistilledStudent",
]
"""Convolutions and recurrent layers (cuDNN's own arithmetic), and state in every place that follows the device."""


@case()
class DrawsAtRandom(Small):
    """Dropout and batch norm: what makes a resumed run differ."""

    def __init__(self):
        super().__init__()
        nn = torch.nn
        self.net = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 1)
        )


@pytest.fixture(params=["cpu", CUDA])
def accelerator(request: pytest.FixtureRequest) -> str:
    """Lightning's name of the accelerator: the CPU everywhere, CUDA where there is one."""
    return str(request.param)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A working folder that is a project's root."""
    (tmp_path / "pyproject.toml").touch()
    return tmp_path


class OnDevice(pl.Callback):
    """What a training's tensors lie on, and its raw weights after each step."""

    def __init__(self) -> None:
        self.devices: set[str] = set()
        self.raw: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.devices |= {str(p.device.type) for p in pl_module.parameters()} | {str(batch[0].device.type)}
        self.raw.append({n: p.detach().cpu().clone() for n, p in pl_module.named_parameters()})


class Interrupts(pl.Callback):
    """Sends SIGTERM to this process after a batch."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == self.after:
            os.kill(os.getpid(), signal.SIGTERM)


def on(accelerator: str, name: str, **trainer: Any) -> Case:
    """A pattern that trains on an accelerator."""
    pattern = CASES[name]
    return dataclasses.replace(pattern, trainer={**pattern.trainer, "accelerator": accelerator, **trainer})


def run(pattern: Case, project: Path, *callbacks: pl.Callback, **overrides: Any) -> unitrain.RunResult:
    """`unitrain.fit` of a pattern without publishing."""
    settings = settings_of(pattern) | {"publish": None} | overrides
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(project)
        return unitrain.fit(settings, callbacks=callbacks, quiet=True)


def checkpoint(result: unitrain.RunResult) -> dict[str, Any]:
    """The last checkpoint, read on the CPU."""
    assert result.last_checkpoint is not None
    return torch.load(result.last_checkpoint, map_location="cpu", weights_only=True)


def differing(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two trees of plain data and tensors are not equal to the bit."""
    if isinstance(a, torch.Tensor):
        return [] if isinstance(b, torch.Tensor) and torch.equal(a, b) else [where]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{where}: other keys"]
        return [place for key in a for place in differing(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple):
        return [
            place
            for i, (x, y) in enumerate(zip(a, b, strict=True))
            for place in differing(x, y, f"{where}/{i}")
        ]
    return [] if a == b else [where]


TRAINED = (
    "state_dict",
    "current_model_state",
    "optimizer_states",
    "lr_schedulers",
    "MixedPrecision",
    "global_step",
    "epoch",
)


def trained_state(result: unitrain.RunResult) -> dict[str, Any]:
    """All of the last checkpoint that a training is made of."""
    content = checkpoint(result)
    return {key: content[key] for key in TRAINED if key in content}


def test_fit_trains_on_the_accelerator_and_leaves_a_checkpoint(accelerator: str, project: Path) -> None:
    """Weights and batches lie there in every step; the run ends with a checkpoint that the CPU reads."""
    looks = OnDevice()
    result = run(on(accelerator, "DrawsAtRandom"), project, looks)
    assert looks.devices == {accelerator}
    assert result.status == "finished"
    content = checkpoint(result)
    assert set(content["current_model_state"]) == set(content["state_dict"])
    assert differing(content["current_model_state"]["net.0.weight"], looks.raw[-1]["net.0.weight"]) == []


def test_the_average_on_the_accelerator_is_that_of_the_raw_weights(accelerator: str, project: Path) -> None:
    """Recomputed on the CPU from the raw weights of every step, with the warm-up's decays."""
    looks = OnDevice()
    content = checkpoint(run(on(accelerator, "DrawsAtRandom"), project, looks, ema={"decay": 0.4}))
    assert len(looks.raw) == 6
    saved = content["state_dict"]
    # The average begins with the weights before the first step, which lose their share at each update.
    average: dict[str, torch.Tensor] | None = None
    share = 1.0
    for n, raw in enumerate(looks.raw):
        decay = min(0.4, (1 + n) / (10 + n))
        share *= decay
        average = {k: v * (1 - decay) + (average[k] * decay if average else 0) for k, v in raw.items()}
    assert average is not None
    for name, value in average.items():
        # What is left of the first weights: they are at most 1 here.
        assert (saved[name] - value).abs().max() <= share + 1e-6, name
        assert not torch.equal(saved[name], looks.raw[-1][name]), name


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_resumed_run_on_the_accelerator_equals_the_uninterrupted(
    accelerator: str, precision: str, project: Path
) -> None:
    """To the bit: weights, average, optimizer and gradient scaler, interrupted in the middle of an epoch."""
    if (accelerator, precision) == ("cpu", "16-mixed"):
        pytest.skip(SCALER_ONLY_ON_GPU)
    pattern = on(accelerator, "DrawsAtRandom", precision=precision, deterministic=True)
    whole = run(pattern, project)
    first = run(pattern, project, Interrupts(3))
    assert (first.status, first.exit_code) == ("interrupted", 143)
    second = unitrain.resume(first.run_dir, quiet=True)
    assert (second.status, second.run_dir) == ("finished", first.run_dir)
    assert differing(trained_state(second), trained_state(whole)) == []
    assert second.metrics == whole.metrics


@pytest.mark.parametrize("accelerator", [CUDA])
@pytest.mark.parametrize("name", PATTERNS)
def test_versions_published_from_the_accelerator_answer_as_the_live_module(
    accelerator: str, name: str, project: Path
) -> None:
    """The corpus's judge, with the live module's answers from the GPU; the corpus itself runs on the CPU."""
    verdict = judge(on(accelerator, name), project)
    assert verdict.kind == "equal", verdict.detail


def test_published_weights_are_those_of_the_average(accelerator: str, project: Path) -> None:
    """Copied from the device: each initializer of the last graph is the checkpoint's averaged weight, to the bit."""
    pattern = on(accelerator, "BareLightningModule")
    live = LiveAnswers(pattern)
    result = train(pattern, project, live)
    model_dir, version = project / "triton_repo" / pattern.name, result.published[-1]
    assert step_of(model_dir, version) == max(live.answers)
    assert compare_version(pattern, model_dir, version, live.answers[max(live.answers)]) is None
    graph = onnx.load(model_dir / str(version) / "model.onnx").graph
    served = {i.name.removeprefix("module."): numpy_helper.to_array(i) for i in graph.initializer}
    saved = checkpoint(result)["state_dict"]
    for name in ("a.weight", "a.bias", "b.weight", "b.bias"):
        np.testing.assert_array_equal(served[name], saved[name].numpy())


def test_publishing_from_the_accelerator_changes_no_bit_of_the_training(
    accelerator: str, project: Path
) -> None:
    """With a version at each validation and with none, the last checkpoints are equal."""
    pattern = on(accelerator, "DrawsAtRandom", deterministic=True)
    off = run(pattern, project)
    on_ = run(pattern, project, publish=settings_of(pattern)["publish"])
    assert on_.published
    assert differing(trained_state(on_), trained_state(off)) == []


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_keeps_and_serves_float32(accelerator: str, precision: str, project: Path) -> None:
    """Weights, average and graph are float32; the served answers are the module's without autocast."""
    if (accelerator, precision) == ("cpu", "16-mixed"):
        pytest.skip(SCALER_ONLY_ON_GPU)
    pattern = on(accelerator, "BareLightningModule", precision=precision)
    live = LiveAnswers(pattern)
    result = train(pattern, project, live)
    content = checkpoint(result)
    assert {tensor.dtype for tensor in content["state_dict"].values()} == {torch.float32}
    assert ("MixedPrecision" in content) == (precision == "16-mixed")
    model_dir, version = project / "triton_repo" / pattern.name, result.published[-1]
    graph = onnx.load(model_dir / str(version) / "model.onnx").graph
    assert {i.data_type for i in graph.initializer if i.name.startswith("module.")} == {
        onnx.TensorProto.FLOAT
    }
    assert compare_version(pattern, model_dir, version, live.answers[step_of(model_dir, version)]) is None


class QueriesTheServer(pl.Callback):
    """Waits for each version at the server while the training runs, and keeps its answers by step."""

    def __init__(self, pattern: Case, repository: Path, server: TritonServer) -> None:
        self.pattern, self.repository, self.server = pattern, repository, server
        self.answers: dict[int, tuple[int, np.ndarray]] = {}

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        record = json.loads((Path(trainer.default_root_dir) / "run.json").read_text())
        for entry in (record.get("published") or ())[-1:]:
            self.ask(entry["step"], entry["version"])

    def ask(self, step: int, version: int) -> None:
        """One request without a version, once the server has loaded this one."""
        self.server.wait_for(self.pattern.name, version)
        rows = {name: value.numpy() for name, value in self.pattern.rows(17, seed=17).items()}
        with Client(self.server.url) as client:
            answer = client.predict(self.pattern.name, **rows)
        self.answers[step] = (answer.version, answer.outputs["output"])


@pytest.mark.slow
def test_versions_are_swapped_under_a_running_triton(
    accelerator: str, project: Path, triton: TritonServer
) -> None:
    """Each version that the training on the accelerator publishes is served before the next epoch's end, and answers."""
    pattern = dataclasses.replace(
        on(accelerator, "BareLightningModule"), settings={"publish": {"repository": str(triton.repository)}}
    )
    live = LiveAnswers(pattern)
    queries = QueriesTheServer(pattern, triton.repository, triton)
    settings = settings_of(pattern)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(project)
        result = unitrain.fit(settings, callbacks=[live, queries], quiet=True)
    model_dir = triton.repository / pattern.name
    queries.ask(step_of(model_dir, result.published[-1]), result.published[-1])
    assert len(queries.answers) >= 2
    for step, (version, served) in queries.answers.items():
        assert step_of(model_dir, version) == step
        np.testing.assert_allclose(served, live.answers[step][17]["output"], rtol=2e-3, atol=2e-4)
