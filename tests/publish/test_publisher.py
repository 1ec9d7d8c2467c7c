"""Weights become a version that carries its proof, whatever its size, or are refused by the gate that saw it."""

import gc
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from pytorch_lightning import LightningModule
from time_limits import LIMIT_S
from torch import nn

from unitrain.errors import ExportError, PublishRefused
from unitrain.onnx_export.export_process import ExportProcess
from unitrain.onnx_export.graph_template import build_template
from unitrain.onnx_export.module_weights import weights_of
from unitrain.onnx_export.served_graph import ServedGraph
from unitrain.publish import Lineage, Publisher, Request
from unitrain.repository import Repository
from unitrain.repository.manifest import Metric
from unitrain.repository.onnx_session import Tolerance, run_onnx
from unitrain.repository.verify import verify_version
from unitrain.settings import Publish, PublishGolden, PublishOnnx, PublishTolerance


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 600), nn.ReLU(), nn.Linear(600, 2))
        self.temperature = 1.0
        self.noise = 0.0

    def forward(self, x):
        y = self.layers(x) / self.temperature
        return {"y": y + self.noise * torch.rand_like(y) if self.noise else y}


class Spectral(LightningModule):
    """Complex weights can't be swapped: each version is exported anew."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 5, dtype=torch.cfloat))

    def forward(self, x):
        spectrum, weight = torch.view_as_real(torch.fft.rfft(x)), torch.view_as_real(self.weight)
        return {"y": spectrum[..., 0] * weight[..., 0] - spectrum[..., 1] * weight[..., 1]}


def publisher(
    tmp_path: Path, module: LightningModule, sample: torch.Tensor | None = None, **options
) -> Publisher:
    return Publisher.prepare(
        module,
        {"x": torch.randn(6, 3) if sample is None else sample},
        repository=Repository(tmp_path / "repository"),
        model="net",
        settings=Publish(**options),
        lineage=Lineage("e/r", str(tmp_path), git_commit="c0ffee"),
    )


def request(module: LightningModule, step: int = 1, value: float = 0.5) -> Request:
    return Request(
        weights_of(module), "ema", step, 0, Metric("val_loss", value, "min"), data_fingerprint="samples:1"
    )


def passed(version_dir: Path) -> list[bool | None]:
    return [check.passed for check in verify_version(version_dir)]


def test_the_graph_itself_tells_where_it_came_from(tmp_path: Path) -> None:
    """The lineage is in the ONNX file's metadata, for those who have nothing but the file."""
    module = Net()
    made = publisher(tmp_path, module)
    manifest = made.publish(request(module, 7))
    told = onnx.load(made.repository.version_dir("net", 1) / "model.onnx").metadata_props
    props = {entry.key.removeprefix("unitrain."): entry.value for entry in told}
    assert (props["run"], props["step"], props["weights"]) == ("e/r", "7", "ema")
    assert (props["git_commit"], props["metric"]) == ("c0ffee", "val_loss=0.5 (min)")
    assert (manifest.opset, manifest.ir_version) == (20, 10)


def test_the_metric_then_and_now_is_in_the_manifest(tmp_path: Path) -> None:
    """Where both were measured on the same data."""
    module = Net()
    made = publisher(tmp_path, module)
    assert made.publish(request(module, 1, 0.5)).previous is None
    assert made.publish(request(module, 2, 0.4)).previous == {"version": 1, "value": 0.5}
    other = replace(request(module, 3, 0.3), data_fingerprint="samples:2")
    assert made.publish(other).previous is None


def test_weights_that_no_onnx_file_can_hold_lie_beside_the_graph(tmp_path: Path) -> None:
    """Forced by a small limit: proven on the file, hashed, and the same answers."""
    module = Net()
    made = publisher(tmp_path, module, onnx=PublishOnnx(external_data_above_bytes=1000))
    manifest = made.publish(request(module))
    version_dir = made.repository.version_dir("net", 1)
    assert set(manifest.files) == {"model.onnx.data"}
    assert (version_dir / "model.onnx.data").stat().st_size > 4 * 600 * 3
    assert passed(version_dir) == [True, True, True]
    x = np.ones((3, 3), np.float32)
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(x))["y"].numpy()
    np.testing.assert_allclose(
        run_onnx(version_dir / "model.onnx", {"x": x})["y"], expected, rtol=1e-5, atol=1e-6
    )
    (version_dir / "model.onnx.data").write_bytes(bytes((version_dir / "model.onnx.data").stat().st_size))
    assert passed(version_dir)[0] is False


def test_refused_large_version_leaves_nothing(tmp_path: Path) -> None:
    """Its gates run on the staged files: a refusal there takes no number."""
    module = Net()
    made = publisher(tmp_path, module, onnx=PublishOnnx(external_data_above_bytes=1000))
    strict = replace(made, settings=replace(made.settings, tolerance=PublishTolerance(0.0, 0.0)))
    strict.template.sample["x"] = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    with pytest.raises(PublishRefused) as caught:
        strict.publish(request(module))
    assert caught.value.gate == "parity"
    assert made.repository.versions("net") == []
    assert made.publish(request(module)).version == 1


def test_golden_samples_are_capped_in_bytes(tmp_path: Path) -> None:
    """Fewer rows where they are large, none where not one fits."""
    module = Net()
    rows = {}
    for limit in (10_000, 50, 10):
        made = publisher(tmp_path, module, golden=PublishGolden(samples=4, max_bytes=limit))
        manifest = made.publish(request(module))
        path = made.repository.version_dir("net", manifest.version) / "golden.npz"
        rows[limit] = len(np.load(path)["inputs/x"]) if manifest.golden_sha256 else None
    assert rows == {10_000: 4, 50: 2, 10: None}


def test_full_exports_run_in_one_process_that_is_kept(tmp_path: Path) -> None:
    """Where swapping does not hold, another process exports; it ends with the publisher."""
    module = Spectral()
    made = publisher(tmp_path, module, torch.randn(6, 8))
    assert not made.template.swappable
    pids = []
    for step in (1, 2):
        with torch.no_grad():
            module.weight.mul_(1 + 1j)
        made.publish(request(module, step))
        pids.append(made._export.pid)
    assert pids[0] is not None
    assert pids[0] == pids[1] != os.getpid()
    made.close()
    assert made._export.pid is None
    x = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(x))["y"].numpy()
    got = run_onnx(made.repository.version_dir("net", 2) / "model.onnx", {"x": x})["y"]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_attribute_that_the_training_changes_is_in_the_next_version(tmp_path: Path) -> None:
    """A graph has it as a constant, which swapping weights leaves as it was: the graph is exported anew."""
    module = Net()
    made = publisher(tmp_path, module)
    made.publish(request(module, 1))
    assert made._export.pid is None
    module.temperature = 0.25
    made.publish(made.capture(module, kind="raw", step=2, epoch=0))
    assert made._export.pid is not None
    made.close()
    made.publish(made.capture(module, kind="raw", step=3, epoch=0))
    assert made._export.pid is None, "from then on weights are swapped again, in the new graph"
    x = {"x": np.ones((2, 3), np.float32)}
    first, second, third = (
        run_onnx(made.repository.version_dir("net", number) / "model.onnx", x)["y"] for number in (1, 2, 3)
    )
    np.testing.assert_allclose(second, 4 * first, rtol=1e-4)
    np.testing.assert_allclose(third, 4 * first, rtol=1e-4)


@pytest.mark.slow
def test_class_of_the_main_script_is_exported_without_another_process(tmp_path: Path) -> None:
    """The other process has another main script: it says that it can't read the class, and this one exports."""
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\n"
        "from pytorch_lightning import LightningModule\n"
        "from unitrain.onnx_export.served_graph import ServedGraph\n"
        "from unitrain.onnx_export.export_process import ExportProcess\n"
        "class Own(LightningModule):\n"
        "    def forward(self, x):\n"
        "        return {'y': x + 1}\n"
        "export = ExportProcess()\n"
        "graph = export(ServedGraph(Own().eval(), ('x',)), {'x': torch.ones(2, 3).numpy()}, opset=20)\n"
        "export.close()\n"
        "print([o.name for o in graph.structure.graph.output])\n"
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "['y']"), done.stderr


def test_export_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """Its process is gone, the reason is told, and the next export has a process of its own."""
    template = build_template(Net(), {"x": torch.randn(6, 3)}, opset=20, tolerance=Tolerance())
    export = ExportProcess(limit_s=0.05)
    with pytest.raises(ExportError, match=r"took more than 0\.05 s"):
        template.exported_again(export)
    assert export.pid is None
    export.close()


@pytest.mark.slow
def test_export_process_that_nobody_closed_ends_with_its_owner() -> None:
    """It leaves neither a process nor a warning of one: warnings are errors here."""
    export = ExportProcess()
    export(ServedGraph(Net().eval(), ("x",)), {"x": np.ones((2, 3), np.float32)}, opset=20)
    process = export._process
    assert process is not None
    assert process.poll() is None
    del export
    gc.collect()
    assert process.poll() is not None
    assert process.stdin is not None
    assert process.stdin.closed


def test_published_tolerances_are_those_that_a_version_is_verified_by(tmp_path: Path) -> None:
    """What was accepted is no damage later; what is worse is."""
    module = Net()
    manifest = publisher(tmp_path, module, tolerance=PublishTolerance(absolute=0.5)).publish(request(module))
    assert manifest.tolerance is not None
    assert manifest.tolerance["absolute"] == 0.5
    version_dir = tmp_path / "repository" / "net" / "1"
    golden = dict(np.load(version_dir / "golden.npz"))
    for off, passes in ((0.4, True), (4.0, False)):
        moved = golden | {"outputs/y": golden["outputs/y"] + np.float32(off)}
        np.savez(version_dir / "golden.npz", allow_pickle=False, **moved)
        assert passed(version_dir)[2] is passes


def corrupt_graph(made: Publisher) -> None:
    made.template.graph.structure.graph.node[0].input[0] = "nowhere"


def corrupt_forward(made: Publisher) -> None:
    made.template.served.module.noise = 1.0  # no graph answers twice alike then


def corrupt_names(made: Publisher) -> None:
    graph = made.template.graph.structure.graph
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    for info in graph.value_info:
        if info.name == graph.output[0].name:
            graph.value_info.remove(info)


@pytest.mark.parametrize(
    ("gate", "corrupt"),
    [("valid_onnx", corrupt_graph), ("parity", corrupt_forward), ("signature", corrupt_names)],
)
def test_a_corrupted_graph_is_refused_by_the_gate_that_is_there_for_it(
    tmp_path: Path, gate: str, corrupt
) -> None:
    """On the whole way from weights to repository; nothing appears."""
    module = Net()
    made = publisher(tmp_path, module)
    corrupt(made)
    with pytest.raises(PublishRefused) as caught:
        made.publish(request(module))
    assert caught.value.gate == gate
    assert made.repository.versions("net") == []


def test_broken_weights_are_refused_by_the_first_gate_and_a_worse_run_by_the_policy(tmp_path: Path) -> None:
    """The first and the last of the chain; what is held back is kept whole in the run's folder."""
    module = Net()
    made = publisher(tmp_path, module)
    made.publish(request(module, 1, 0.5))
    made.lineage = replace(made.lineage, run="e/another", run_dir=str(tmp_path))
    broken = request(module, 2, 0.1)
    broken.weights["layers.0.bias"][0] = float("nan")
    for wrong, gate in ((broken, "finite_weights"), (request(module, 3, 0.9), "policy")):
        with pytest.raises(PublishRefused) as caught:
            made.publish(wrong)
        assert caught.value.gate == gate
    assert made.repository.versions("net") == [1]
