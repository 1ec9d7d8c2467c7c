"""What is published answers as the live module did at that validation, whatever the module is like."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pytorch_lightning import Callback
from slow_cases import slow_except
from time_limits import LIMIT_S

import unitrain
from unitrain.errors import HookError, UsageError
from unitrain.repository import Repository
from unitrain.repository.manifest import read_manifest
from unitrain.repository.onnx_session import run_onnx
from unitrain.training.console import Console
from unitrain.training.export_checkpoint import export_run

MODULES = """
import numpy as np, pytorch_lightning as pl, torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

class Data(pl.LightningDataModule):
    def train_dataloader(self):
        x = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), 16)
    def val_dataloader(self):
        return self.train_dataloader()

class Base(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    def forward(self, x):
        return self.net(x)
    def training_step(self, batch, batch_idx):
        return F.mse_loss(self(batch[0]), batch[1])
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.mse_loss(self(batch[0]), batch[1]))
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)

class Temperature(Base):
    def __init__(self):
        super().__init__()
        self._state = {"temperature": 1.0}
    def forward(self, x):
        return self.net(x) * self._state["temperature"] * (self.current_epoch + 1)
    def on_train_epoch_end(self):
        self._state["temperature"] *= 3.0

class Grows(Base):
    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.net.append(nn.Linear(1, 1))
            self.optimizers().add_param_group({"params": self.net[3].parameters()})

class Statistics(Base):
    def on_fit_start(self):
        self.mean = np.full(8, 5.0, np.float32)
    def forward(self, x):
        return self.net(x - torch.from_numpy(self.mean).to(x.device))

class Generates(Base):
    def training_step(self, batch, batch_idx):
        self.generated = self(batch[0])
        return F.mse_loss(self.generated, batch[1])

class Normed(Base):
    def __init__(self):
        super().__init__()
        self.net[0] = torch.nn.utils.weight_norm(self.net[0])

class Masked(Base):
    def forward(self, x, mask=None):
        return self.net(x if mask is None else x * mask.sum() * 0)
    def training_step(self, batch, batch_idx):
        return F.mse_loss(self(*batch), batch[1])
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.mse_loss(self(*batch), batch[1]))

class Batched(Base):
    def forward(self, x):
        return self.net(x - x.mean(0))

class Quantized(Base):
    def __init__(self):
        super().__init__()
        import torch.ao.quantization as q
        self.quant, self.dequant = q.QuantStub(), q.DeQuantStub()
        self.qconfig = q.get_default_qat_qconfig("fbgemm")
        q.prepare_qat(self.train(), inplace=True)
    def forward(self, x):
        return self.dequant(self.net(self.quant(x)))
"""


class Live(Callback):
    """The live module's answers at each validation, the average in place, by step."""

    def __init__(self) -> None:
        self.x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
        self.answers: dict[int, np.ndarray] = {}
        self.zeros: dict[int, int] = {}

    def on_validation_end(self, trainer, pl_module):
        if trainer.sanity_checking:
            return
        with torch.no_grad():
            self.answers[trainer.global_step] = pl_module(self.x).numpy()


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Path]:
    """A project with a module of each kind, three epochs, and a version at each validation."""
    (tmp_path / "pyproject.toml").touch()
    name = f"kinds_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULES)
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump({
        "experiment": "kinds", "seed_everything": 1, "embeddings": None, "summaries": None,
        "data": {"class_path": f"{name}.Data"}, "model": {"class_path": f"{name}.Base"},
        "trainer": {"max_epochs": 3}, "publish": {"every_n_validations": 1, "policy": "every"},
    }))  # fmt: skip
    yield path
    sys.modules.pop(name, None)


def fit(settings: Path, kind: str, live: Live, **overrides: object):
    name = yaml.safe_load(settings.read_text())["model"]["class_path"].rpartition(".")[0]
    return unitrain.fit(
        settings, {"model.class_path": f"{name}.{kind}", **overrides}, callbacks=[live], quiet=True
    )


@pytest.mark.slow
def test_export_refuses_state_that_the_checkpoint_lacks(settings: Path) -> None:
    """A temperature that the training raised is in no checkpoint: the rebuilt module would answer otherwise."""
    changed = fit(settings, "Temperature", Live())
    for checkpoint in ("best", "last"):
        with pytest.raises(HookError, match=r"forward reads .*_state.*register_buffer"):
            export_run(changed.run_dir, checkpoint=checkpoint, console=Console(quiet=True))
    kept = fit(settings, "Base", Live())
    assert export_run(kept.run_dir, console=Console(quiet=True)).version > 1
    # In another process names come in another order, and functions have other addresses.
    exported = subprocess.run(
        [sys.executable, "-m", "unitrain", "export", "--run", str(kept.run_dir)],
        cwd=settings.parent, env=os.environ | {"PYTHONHASHSEED": "7"}, capture_output=True, text=True,
        timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert exported.returncode == 0, exported.stderr


@pytest.mark.filterwarnings("ignore::FutureWarning")  # the old weight_norm says so of itself
@pytest.mark.parametrize(
    "kind",
    slow_except(["Temperature", "Statistics"], ["Temperature", "Grows", "Statistics", "Generates", "Normed"]),
)
def test_every_version_answers_as_the_live_module_did(kind: str, settings: Path, tmp_path: Path) -> None:
    """State outside the weights, new layers, statistics of on_fit_start, tensors with a history."""
    live = Live()
    result = fit(settings, kind, live)
    repository = Repository(tmp_path / "triton_repo")
    assert result.published[-1:] == repository.versions("kinds")[-1:] != []
    for version in repository.versions("kinds"):
        folder = repository.version_dir("kinds", version)
        manifest = read_manifest(folder)
        assert manifest is not None
        got = run_onnx(folder / "model.onnx", {"x": live.x.numpy()})["output"]
        np.testing.assert_allclose(got, live.answers[manifest.step], rtol=1e-3, atol=1e-4)
    assert manifest.step == max(live.answers)


@pytest.mark.parametrize(
    ("kind", "words"),
    [("Batched", "depends on the other rows of its batch"), ("Quantized", "quantization-aware training has no form")],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_module_that_cannot_be_served_is_refused_before_the_first_epoch(
    kind: str, words: str, settings: Path, tmp_path: Path
) -> None:
    """Exit code 2, and no run folder stays."""
    with pytest.raises(UsageError, match=words):
        fit(settings, kind, Live())
    assert not list(tmp_path.glob("experiments/*/*"))


def test_inputs_that_are_trained_with_and_not_served_are_said(
    settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line at the start."""
    name = yaml.safe_load(settings.read_text())["model"]["class_path"].rpartition(".")[0]
    unitrain.fit(settings, {"model.class_path": f"{name}.Masked", "trainer.max_epochs": 1})
    said = capsys.readouterr().err
    assert said.count("mask: given to forward in validation, and no input of what is served") == 1


@pytest.mark.slow
def test_pruned_weights_are_averaged_and_served_pruned(settings: Path, tmp_path: Path) -> None:
    """Half of them are zero in the checkpoint, and in what is served at the end."""
    content = yaml.safe_load(settings.read_text())
    pruning = {
        "class_path": "pytorch_lightning.callbacks.ModelPruning",
        "init_args": {"pruning_fn": "l1_unstructured", "amount": 0.5, "use_lottery_ticket_hypothesis": False},
    }
    content["trainer"]["callbacks"] = [pruning]
    settings.write_text(yaml.safe_dump(content))
    live = Live()
    result = fit(settings, "Base", live)
    checkpoint = torch.load(result.last_checkpoint, weights_only=True)
    for state in ("state_dict", "current_model_state"):
        weights = checkpoint[state]["net.0.weight"]
        assert int((weights == 0).sum()) >= weights.numel() // 2
    assert not torch.equal(
        checkpoint["state_dict"]["net.0.weight"], checkpoint["current_model_state"]["net.0.weight"]
    )
    repository = Repository(tmp_path / "triton_repo")
    folder = repository.version_dir("kinds", repository.versions("kinds")[-1])
    got = run_onnx(folder / "model.onnx", {"x": live.x.numpy()})["output"]
    np.testing.assert_allclose(got, live.answers[max(live.answers)], rtol=1e-3, atol=1e-4)
