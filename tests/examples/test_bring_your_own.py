"""A plain LightningModule and LightningDataModule, served without a line that knows of it."""

import ast
from pathlib import Path

import numpy as np
import pytest
from commands import ROOT
from terminal import Terminal

from examples.bring_your_own.client import DiabetesIO, references
from examples.bring_your_own.patients import load_diabetes_parts
from unitrain.client import ModelInfo
from unitrain.signature import Signature, TensorSpec

README = ROOT / "examples" / "bring_your_own" / "README.md"


@pytest.mark.parametrize("name", ["model.py", "data.py", "patients.py"])
def test_model_and_data_import_nothing_of_unitrain(name: str) -> None:
    """Neither by name nor through a module of the project that does."""
    tree = ast.parse((README.parent / name).read_text())
    imported = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name for name in imported if name.startswith("unitrain")}
    assert {name for name in imported if name.startswith(("examples", "datamodules"))} <= {
        "examples.bring_your_own.patients"
    }


def test_parts_are_disjoint_and_complete() -> None:
    """266, 88 and 88 patients, none in two parts."""
    parts = load_diabetes_parts(seed=3)
    rows = [{(*features, *target) for features, target in zip(*part, strict=True)} for part in parts]
    assert [len(part.target) for part in parts] == [266, 88, 88]
    assert len(set.union(*rows)) == sum(map(len, rows)) == 442


def test_client_compares_with_models_that_are_better_than_the_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """True answers have no error; linear regression stands beside them, and the picture is written."""
    signature = Signature(
        (TensorSpec("features", "FP32", (10,)),), (TensorSpec("output", "FP32", (1,)),), batched=True
    )
    served = ModelInfo("bring_your_own", (1,), None, signature, 1024, "127.0.0.1:8001")
    io = DiabetesIO(served, plot=str(tmp_path / "served.png"))
    truth = load_diabetes_parts().held_out.target
    for index, _ in enumerate(io.inputs()):
        io.decode(index, {"output": truth[index]}, version=1)
    io.finalize()
    assert io.rmse["served"] == 0
    assert io.rmse["linear regression"] < 0.8 * io.rmse["mean"]
    assert "linear regression 53.3" in capsys.readouterr().out
    assert (tmp_path / "served.png").read_bytes().startswith(b"\x89PNG")


def test_references_never_see_the_held_out_target() -> None:
    """With other held-out targets they predict the same."""
    parts = load_diabetes_parts()
    other = parts._replace(held_out=parts.held_out._replace(target=parts.held_out.target + 100))
    first, second = references(parts), references(other)
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_served_model_is_no_worse_than_linear_regression(terminal: Terminal) -> None:
    """README's commands, trained in full; the mean would be at 77, linear regression at 53."""
    terminal.read(README, "")
    said = terminal.said("predict bring_your_own")
    assert float(said.split("served ")[1].split(",")[0]) < 56
